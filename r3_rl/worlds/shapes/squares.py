"""What is in each cell of an image, as numbers: what an understanding tower learns to see before it reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from r3_rl.worlds.base import Squares
from r3_rl.worlds.shapes.board import NINE, Board
from r3_rl.worlds.shapes.scene import Scene
from r3_rl.worlds.shapes.terms import COLORS, SHAPES


def squares(scenes: Sequence[Scene], board: Board = NINE) -> Squares:
    """Five fields a cell: taken or free; and of what is taken colour, shape, size, well formed or malformed.

    >>> from r3_rl.worlds.shapes.scene import Obj
    >>> found = squares([(Obj("red", "circle", 0, 1),)])
    >>> found.labels.shape, found.labels[0, 0].tolist()  # the first cell is free: nothing is said of its colour
    ((1, 9, 5), [0, -1, -1, -1, -1])
    """
    sizes = [size.word for size in board.sizes]
    labels = np.full((len(scenes), len(board.cells), 5), -1)
    labels[:, :, 0] = 0
    for row, scene in zip(labels, scenes, strict=True):
        for this in scene:
            looks = (COLORS.index(this.color), SHAPES.index(this.shape), sizes.index(this.size), int(this.malformed))
            row[board.cells.index(this.cell)] = (1, *looks)
    return Squares(labels=labels, sizes=(2, len(COLORS), len(SHAPES), len(sizes), 2))
