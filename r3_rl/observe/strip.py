"""Trajectories as a labelled picture: draft | critique | round 1 | critique | round 2, and many of them in a grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from r3_rl.observe.trajectories import SeenRound, SeenTrajectory, see
from r3_rl.types import Trajectory

BACKGROUND = (250, 250, 249)
INK = (28, 28, 30)
QUIET = (110, 110, 116)
RIGHT = (21, 115, 71)
WRONG = (178, 48, 40)
PARTIAL = (146, 98, 8)
LINE = (218, 218, 214)
MARGIN = 16
GAP = 12
RIGHT_SCORE = 1 - 1e-6


@dataclass(frozen=True, kw_only=True)
class _Layout:
    image_px: int
    text_px: int

    @property
    def font(self) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
        return ImageFont.load_default(size=max(12, self.image_px // 12))

    @property
    def small(self) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
        return ImageFont.load_default(size=max(11, self.image_px // 13))

    @property
    def row_px(self) -> int:
        return round(max(12, self.image_px // 12) * 1.4)


def strip(trajectory: Trajectory | SeenTrajectory, *, image_px: int = 176) -> Image.Image:
    """One trajectory as a row: each image with its score, and between two images the critique that led on.

    Args:
        trajectory: as rolled out, or as loaded from a run folder.
        image_px: side of an image in the picture; small images are enlarged without smoothing.

    Returns:
        An RGB picture.
    """
    seen = trajectory if isinstance(trajectory, SeenTrajectory) else see(trajectory)
    layout = _Layout(image_px=image_px, text_px=image_px)
    columns = len(seen.rounds)
    # A critique column follows every image; the last one only if something was said about the last image.
    says_last = seen.rounds[-1].critique is not None
    width = 2 * MARGIN + columns * (image_px + GAP) + (columns - 1 + says_last) * (layout.text_px + GAP) - GAP
    title = _wrap(seen.prompt, layout.font, width - 2 * MARGIN)
    title_px = len(title) * layout.row_px + GAP // 2
    body_px = max(_column_px(this, layout) for this in seen.rounds)
    picture = Image.new("RGB", (width, MARGIN + title_px + body_px + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(title):
        draw.text((MARGIN, MARGIN + number * layout.row_px), line, INK, layout.font)
    x, top = MARGIN, MARGIN + title_px
    for number, this in enumerate(seen.rounds):
        _draw_image(picture, this, number, (x, top), layout)
        x += image_px + GAP
        if this.critique is not None:
            _draw_critique(draw, this, (x, top), layout)
        x += layout.text_px + GAP
    return picture


def enlarge(pixels: np.ndarray, side_px: int) -> Image.Image:
    """Fit an image into a square, keeping its shape; small ones keep hard pixels, large ones are smoothed.

    >>> enlarge(np.zeros((8, 4, 3), dtype=np.uint8), 64).size
    (32, 64)
    """
    height, width = pixels.shape[:2]
    scale = side_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)


def round_name(number: int) -> str:
    """`draft` for round 0, else `round n`."""
    return "draft" if number == 0 else f"round {number}"


def _column_px(this: SeenRound, layout: _Layout) -> int:
    words = _wrap(this.words, layout.small, layout.image_px)
    critique = _wrap(this.thoughts, layout.small, layout.text_px)
    edit = _wrap(_said(this), layout.font, layout.text_px)
    text_rows = 1 + len(critique) + len(edit)
    return max(layout.image_px + (1 + len(words)) * layout.row_px, text_rows * layout.row_px) + GAP // 2


def _draw_image(picture: Image.Image, this: SeenRound, number: int, at: tuple[int, int], layout: _Layout) -> None:
    draw = ImageDraw.Draw(picture)
    x, y = at
    side = layout.image_px
    if this.pixels is None:
        draw.rectangle([x, y, x + side - 1, y + side - 1], outline=LINE)
        draw.text((x + 8, y + 8), "image missing", QUIET, layout.small)
    else:
        image = enlarge(this.pixels, side)
        picture.paste(image, (x + (side - image.width) // 2, y + (side - image.height) // 2))
    y += side + 4
    draw.text((x, y), round_name(number), QUIET, layout.font)
    label, ink = score_label(this.score)
    draw.text((x + side - draw.textlength(label, layout.font), y), label, ink, layout.font)
    for line in _wrap(this.words, layout.small, side):
        y += layout.row_px
        draw.text((x, y), line, QUIET, layout.small)


def _draw_critique(draw: ImageDraw.ImageDraw, this: SeenRound, at: tuple[int, int], layout: _Layout) -> None:
    x, y = at
    draw.text((x, y), "critique", QUIET, layout.font)
    y += layout.row_px
    for line in _wrap(this.thoughts, layout.small, layout.text_px):
        draw.text((x, y), line, QUIET, layout.small)
        y += layout.row_px
    for line in _wrap(_said(this), layout.font, layout.text_px):
        draw.text((x, y), line, INK if this.well_formed else WRONG, layout.font)
        y += layout.row_px


def _said(this: SeenRound) -> str:
    if this.critique is None:
        return ""
    if not this.well_formed:
        return "malformed: the loop ends"
    return "stop: no further edit" if this.stop else f"> {this.instruction}"


def score_label(score: float | None) -> tuple[str, tuple[int, int, int]]:
    """Words and ink for a score: right at 1, wrong at 0, the number in between.

    >>> score_label(0.3)[0], score_label(1.0)[0], score_label(None)[0]
    ('0.30', 'right', 'no score')
    """
    if score is None:
        return "no score", QUIET
    if score >= RIGHT_SCORE:
        return "right", RIGHT
    return f"{score:.2f}", WRONG if score <= 0.5 else PARTIAL


def _wrap(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width_px: int) -> list[str]:
    """Break a text into lines of at most `width_px`; a word that is too long alone is broken inside."""
    lines: list[str] = []
    current = ""
    for word in text.split():
        candidate = f"{current} {word}".strip()
        if font.getlength(candidate) <= width_px:
            current = candidate
            continue
        if current:
            lines.append(current)
        while font.getlength(word) > width_px and len(word) > 1:
            cut = max(1, next(n for n in range(len(word), 0, -1) if n == 1 or font.getlength(word[:n]) <= width_px))
            lines.append(word[:cut])
            word = word[cut:]
        current = word
    return [*lines, current] if current else lines
