"""Pixels to objects: what is in a picture of the shapes world, and what is malformed in it.

It reads nothing but pixels. Each cell is compared with drawn templates; whatever does not look like one clean shape in
one colour of the palette is reported as malformed, because a lenient inspector is what reinforcement learning finds
first. Shape legend: B images; K cells with something in them; T templates; P = 12 pixels of a cell's side.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from r3_rl.errors import InputError
from r3_rl.worlds.shapes.board import CELL_SIZE, NINE, Board
from r3_rl.worlds.shapes.drawing import BACKGROUND, PALETTE, coverage
from r3_rl.worlds.shapes.scene import UNCLEAR, Obj, Scene
from r3_rl.worlds.shapes.terms import COLORS, SHAPES

# Limits, set on renders with and without faults (README): noise of 0.05 and a slight blur stay inside all of them.
MIN_MASS = 3.0
"""Pixels' worth of light above `MIN_LIGHT` that make a cell not empty; fewer where objects are below `MASS_RADIUS`."""
MASS_RADIUS = 3.4
"""In pixels; the light of smaller objects falls with the square of it."""
MIN_LIGHT = 0.12
MAX_MISFIT = 0.09
"""Share of a template's energy that the picture may depart from it, beyond what pixel noise explains."""
MAX_NOISE = 0.08
"""Standard deviation of pixel noise that is excused."""
MIN_BRIGHTNESS, MAX_BRIGHTNESS = 0.72, 1.25
"""Relative to the palette."""
MAX_TINT = 0.2
"""RGB distance between the shape's mean colour at full brightness and the palette's."""
MAX_OFF_SIZE = 0.3
"""Pixels that a radius may be outside of the range of its size; an object between two sizes is malformed."""
_CELLS_AT_ONCE = 512


class _Bank(NamedTuple):
    templates: np.ndarray
    """float32 [P * P, T]"""
    energy: np.ndarray
    """float32 [T], sum of squares."""
    shape: np.ndarray
    dx: np.ndarray
    dy: np.ndarray
    radius: np.ndarray
    size: np.ndarray
    """int [T], index of the nearest of the board's sizes."""
    off_size: np.ndarray
    """bool [T], is it between two sizes?"""


@cache
def _bank(board: Board) -> _Bank:
    """All shapes at all places and sizes that drawing uses and somewhat beyond, in steps of a third of a pixel."""
    offsets = np.linspace(-1.75, 1.75, 11, dtype=np.float32)
    least, most, number = board.template_radii
    radii = np.linspace(least, most, number, dtype=np.float32)
    grid = np.meshgrid(np.arange(len(SHAPES)), offsets, offsets, radii, indexing="ij")
    shape, dx, dy, radius = (axis.reshape(-1) for axis in grid)
    templates = coverage(shape, dx, dy, radius).reshape(len(shape), -1).T.copy()
    ranges = [np.array(size.radius, np.float32) for size in board.sizes]
    off = np.stack([np.maximum(low - radius, radius - high) for low, high in ranges])
    off_size = off.min(axis=0) > MAX_OFF_SIZE
    return _Bank(templates, np.square(templates).sum(0), shape, dx, dy, radius, off.argmin(axis=0), off_size)


def inspect(images: np.ndarray, board: Board = NINE) -> list[Scene]:
    """Read a batch of pictures.

    Args:
        images: float [B, 3, H, W] in [0, 1], H = W = `board.image_size`.
        board: that they show.

    Raises:
        InputError: another shape.

    >>> from r3_rl.worlds.shapes.drawing import render
    >>> [o.color for o in inspect(render([(Obj("red", "circle", 0, 2),)]))[0]]
    ['red']
    """
    images = np.asarray(images, np.float32)
    side, pixels = board.side, board.image_size
    if images.ndim != 4 or images.shape[1:] != (3, pixels, pixels):
        raise InputError(
            f"images of shape {list(images.shape)} are not pictures of the {board.name} world",
            hint=f"give float [B, 3, {pixels}, {pixels}] in [0, 1]",
        )
    cells = images.reshape(-1, 3, side, CELL_SIZE, side, CELL_SIZE).transpose(0, 2, 4, 1, 3, 5) - np.float32(BACKGROUND)
    noise = _noise_power(images)
    light = np.maximum(cells.max(axis=3) - MIN_LIGHT, 0.0).sum(axis=(-2, -1))
    where = np.argwhere(light >= MIN_MASS * min(1.0, board.sizes[0].radius[0] / MASS_RADIUS) ** 2)
    seen: list[list[Obj]] = [[] for _ in images]
    for start in range(0, len(where), _CELLS_AT_ONCE):
        at = where[start : start + _CELLS_AT_ONCE]
        found = _read_cells(cells[tuple(at.T)], noise[at[:, 0]], board)
        for (b, row, col), read in zip(at.tolist(), found, strict=True):
            seen[b].append(read._replace(row=row, col=col))
    return [tuple(objects) for objects in seen]


def _noise_power(images: np.ndarray) -> np.ndarray:
    """Variance of the pixel noise [B], at most MAX_NOISE squared, from the median step between neighbours.

    Outlines are too few to move the median, so a picture cannot pass faults off as noise.
    """
    steps = np.abs(np.diff(images, axis=-1)).reshape(len(images), -1)
    return np.square(np.minimum(np.median(steps, axis=1) / (0.6745 * np.sqrt(2)), MAX_NOISE))


def _read_cells(cells: np.ndarray, noise: np.ndarray, board: Board) -> list[Obj]:
    """Best guess (in cell 0, 0) of cells [K, 3, P, P] with the background taken off; `noise` is [K]."""
    bank, palette = _bank(board), PALETTE - np.float32(BACKGROUND)
    pixels = cells.reshape(len(cells), 3, -1)
    light = np.square(np.maximum(pixels.max(axis=1), 0.0))
    hue = np.einsum("kcp,kp->kc", pixels, light) / light.sum(axis=1)[:, None]
    # By direction, so that a faded colour is still called by its name.
    unit = palette / np.linalg.norm(palette, axis=1, keepdims=True)
    color = (hue @ unit.T).argmax(axis=1)
    rgb = palette[color]
    power = np.square(rgb).sum(axis=1)
    alpha = np.einsum("kcp,kc->kp", pixels, rgb) / power[:, None]

    match = alpha @ bank.templates
    best = (match / np.sqrt(bank.energy)).argmax(axis=1)
    energy = bank.energy[best]
    brightness = match[np.arange(len(best)), best] / energy
    unexplained = np.square(pixels).sum(axis=(1, 2)) - noise * pixels[0].size
    misfit = np.maximum(unexplained / power / energy - np.square(brightness), 0.0)
    template = bank.templates[:, best]
    mean = np.einsum("kcp,pk->kc", pixels, template) / energy[:, None]
    tint = np.linalg.norm(mean / np.maximum(brightness, 0.1)[:, None] - rgb, axis=1)
    malformed = (misfit > MAX_MISFIT) | (brightness < MIN_BRIGHTNESS) | (brightness > MAX_BRIGHTNESS)
    malformed |= (tint > MAX_TINT) | bank.off_size[best]
    return [
        Obj(
            COLORS[color[k]],
            SHAPES[bank.shape[t]],
            0,
            0,
            float(bank.dx[t]),
            float(bank.dy[t]),
            float(bank.radius[t]),
            UNCLEAR if malformed[k] else "",
            size=board.sizes[bank.size[t]].word,
        )
        for k, t in enumerate(best)
    ]


def same_objects(seen: Sequence[Obj], drawn: Sequence[Obj]) -> bool:
    """Same colours, shapes and sizes in the same cells, and the same objects malformed?"""
    one, other = ({(o[:4], o.size, o.malformed) for o in objects} for objects in (seen, drawn))
    return one == other and len(seen) == len(drawn)
