"""Scenes to pixels: anti-aliased shapes from signed distances, a whole batch at once.

Shape legend: B images; K objects; P = 12 pixels of a cell's side. Values are in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from r3_rl.worlds.shapes.board import CELL_SIZE, NINE, Board
from r3_rl.worlds.shapes.scene import ROUGH_KINDS, Scene
from r3_rl.worlds.shapes.terms import COLORS, SHAPES

BACKGROUND = 0.04
PALETTE = np.array(
    [
        [0.95, 0.12, 0.12],
        [0.12, 0.80, 0.18],
        [0.15, 0.22, 1.00],
        [0.97, 0.88, 0.12],
        [0.80, 0.20, 0.90],
        [0.10, 0.90, 0.95],
    ],
    dtype=np.float32,
)
"""RGB of COLORS; any two are at least 0.6 apart, so a colour half way between two can be told from both."""

COLOR_INDEX = {color: i for i, color in enumerate(COLORS)}
SHAPE_INDEX = {shape: i for i, shape in enumerate(SHAPES)}
_ROUGH_INDEX = {kind: i for i, kind in enumerate(("", *ROUGH_KINDS))}
_PIXELS = (np.arange(CELL_SIZE, dtype=np.float32) + 0.5) - CELL_SIZE / 2


def _distance(shape: int, x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Signed distance in pixels to the outline, negative inside; y grows downwards."""
    if SHAPES[shape] == "circle":
        return np.sqrt(x * x + y * y) - r
    if SHAPES[shape] == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.86 * r
    if SHAPES[shape] == "triangle":
        return np.maximum(y - 0.85 * r, (1.85 * np.abs(x) - (y + r)) / np.float32(np.hypot(1.85, 1.0)))
    across, along, arm = np.abs(x), np.abs(y), 0.34 * r
    return np.minimum(np.maximum(across - arm, along - r), np.maximum(across - r, along - arm))


def coverage(shape: np.ndarray, dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """How much of each pixel of a cell the shape covers: float32 [K, P, P] in [0, 1].

    Arguments are [K]: index into SHAPES, offset from the cell's middle and radius in pixels.

    >>> c = coverage(np.array([0]), np.zeros(1), np.zeros(1), np.full(1, 4.0))
    >>> abs(float(c.sum()) - np.pi * 16) < 1.0
    True
    """
    shape = np.asarray(shape)
    out = np.empty((len(shape), CELL_SIZE, CELL_SIZE), np.float32)
    for index in range(len(SHAPES)):
        at = np.flatnonzero(shape == index)
        if len(at):
            x = _PIXELS[None, None, :] - np.asarray(dx, np.float32)[at, None, None]
            y = _PIXELS[None, :, None] - np.asarray(dy, np.float32)[at, None, None]
            r = np.asarray(radius, np.float32)[at, None, None]
            out[at] = np.clip(0.5 - _distance(index, x, y, r), 0.0, 1.0)
    return out


def render(scenes: Sequence[Scene], board: Board = NINE) -> np.ndarray:
    """Draw scenes: float32 [B, 3, H, W] in [0, 1], H = W = `board.image_size`. Rough objects are drawn as their `rough`
    and `wear` say.

    >>> from r3_rl.worlds.shapes.scene import Obj
    >>> render([(Obj("red", "circle", 0, 0),), ()]).shape
    (2, 3, 36, 36)
    """
    side = board.side
    cells = np.full((len(scenes), side, side, 3, CELL_SIZE, CELL_SIZE), BACKGROUND, np.float32)
    numbers = [
        (b, o.row, o.col, COLOR_INDEX[o.color], SHAPE_INDEX[o.shape], *o[4:7], _ROUGH_INDEX[o.rough], o.wear)
        for b, scene in enumerate(scenes)
        for o in scene
    ]
    if numbers:
        table = np.array(numbers, np.float32)
        image, row, col, color, shape, _, _, _, rough, _ = table.T.astype(np.int64)
        patches = _paint(np.float32(BACKGROUND), coverage(shape, *table[:, 5:8].T), PALETTE[color])
        worn = np.flatnonzero(rough)
        if len(worn):
            patches[worn] = _rough_patches(shape[worn], color[worn], table[worn, 5:8], rough[worn], table[worn, 9])
        cells[image, row, col] = patches
    return cells.transpose(0, 3, 1, 4, 2, 5).reshape(len(scenes), 3, board.image_size, board.image_size)


def _paint(under: np.ndarray | np.floating, alpha: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """Lay colours [K, 3] over `under` where `alpha` [K, P, P] says: [K, 3, P, P]."""
    return under + alpha[:, None] * (rgb[:, :, None, None] - under)


def _rough_patches(
    shape: np.ndarray, color: np.ndarray, place: np.ndarray, rough: np.ndarray, wear: np.ndarray
) -> np.ndarray:
    """Cells [K, 3, P, P] of malformed objects; `place` is [K, 3] = dx, dy, radius."""
    alpha = coverage(shape, *place.T)
    rgb, under = PALETTE[color].copy(), np.full((len(shape), 3, CELL_SIZE, CELL_SIZE), BACKGROUND, np.float32)
    # Independent details out of one number: its further digits.
    second, third = (wear * 7919) % 1, (wear * 104729) % 1
    other = (color + 1 + (second * (len(COLORS) - 1)).astype(np.int64)) % len(COLORS)
    angle = 2 * np.pi * third
    cos, sin = (f(angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))

    faded = rough == _ROUGH_INDEX["faded"]
    alpha[faded] *= (0.3 + 0.2 * wear[faded])[:, None, None]

    half = rough == _ROUGH_INDEX["half"]
    x = _PIXELS[None, None, :] - place[:, 0, None, None]
    y = _PIXELS[None, :, None] - place[:, 1, None, None]
    cut = np.clip(0.5 + cos * x + sin * y + (0.6 * wear)[:, None, None], 0, 1)
    alpha[half] *= cut[half]

    merged = rough == _ROUGH_INDEX["merged"]
    if merged.any():
        step = (2.8 + 1.4 * wear) * np.stack([np.cos(angle), np.sin(angle)])
        twin_shape = (shape + 1 + (wear * (len(SHAPES) - 1)).astype(np.int64)) % len(SHAPES)
        twin = coverage(twin_shape, place[:, 0] + step[0], place[:, 1] + step[1], place[:, 2])
        under[merged] = _paint(under, twin, PALETTE[np.where(second < 0.2, color, other)])[merged]

    tinted = rough == _ROUGH_INDEX["tinted"]
    rgb[tinted] = (0.65 * rgb + 0.35 * PALETTE[other])[tinted]

    smeared = rough == _ROUGH_INDEX["smeared"]
    if smeared.any():
        alpha[smeared] = blur(alpha[smeared], passes=5)
    return _paint(under, alpha, rgb)


def blur(images: np.ndarray, *, passes: int = 1) -> np.ndarray:
    """Blur the last two axes with the kernel (1, 2, 1) / 4, `passes` times; the border is repeated."""
    out = images
    for _ in range(passes):
        for axis in (-2, -1):
            old = np.moveaxis(out, axis, 0)
            new = 0.5 * old
            new[1:] += 0.25 * old[:-1]
            new[:-1] += 0.25 * old[1:]
            new[0] += 0.25 * old[0]
            new[-1] += 0.25 * old[-1]
            out = np.moveaxis(new, 0, axis)
    return out


@cache
def _noise_bank() -> np.ndarray:
    """A million standard normal numbers; slices at random offsets are ten times cheaper than fresh ones."""
    return np.random.default_rng(0).standard_normal(1 << 20, np.float32)


def roughen_pixels(images: np.ndarray, rng: np.random.Generator, *, max_noise: float = 0.04) -> np.ndarray:
    """Make renders look as a model draws: pixel noise of 0 to `max_noise` and, on a third of them, a slight blur.

    Takes and returns float32 [B, 3, H, W] in [0, 1].
    """
    out = images.copy()
    at = np.flatnonzero(rng.random(len(out)) < 1 / 3)
    if len(at):
        share = rng.random((len(at), 1, 1, 1), np.float32) * 0.7
        out[at] += share * (blur(out[at]) - out[at])
    bank, size = _noise_bank(), int(np.prod(out.shape[1:]))
    starts = rng.integers(0, len(bank) - size, len(out))
    strengths = rng.random(len(out), np.float32) * max_noise
    for image, start, strength in zip(out, starts, strengths, strict=True):
        image += strength * bank[start : start + size].reshape(image.shape)
    return np.clip(out, 0.0, 1.0, out=out)
