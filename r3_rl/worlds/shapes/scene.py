"""What is in a picture: objects on a board, and the edits that change a scene."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from r3_rl.worlds.shapes.board import NINE, Board
from r3_rl.worlds.shapes.terms import COLORS, SHAPES, pick

ROUGH_KINDS = ("faded", "half", "merged", "tinted", "smeared")
UNCLEAR = "unclear"
"""`Obj.rough` of an object that was read from pixels or words and found malformed, whatever the cause."""


class Obj(NamedTuple):
    """One object: what it is, the cell it is in, and how exactly it is drawn.

    >>> Obj("red", "circle", 0, 2).malformed
    False
    """

    color: str
    shape: str
    row: int
    col: int
    dx: float = 0.0
    """Offset from the middle of the cell in pixels, as `dy`."""
    dy: float = 0.0
    radius: float = 4.0
    """Half of the largest extent in pixels."""
    rough: str = ""
    """How it is malformed: one of ROUGH_KINDS when drawn so, UNCLEAR when seen so, empty for a clean object."""
    wear: float = 0.0
    """In [0, 1): fixes the details of a rough drawing, so that it can be drawn again exactly."""
    size: str = ""
    """The word for its size; empty on boards with one."""

    @property
    def malformed(self) -> bool:
        """True for an object that no prompt is satisfied with."""
        return bool(self.rough)

    @property
    def cell(self) -> tuple[int, int]:
        """(row, column)."""
        return self.row, self.col


Scene = tuple[Obj, ...]
"""Objects in separate cells. The order is the order of the plan: the prompt's, where the scene was made for one."""


def reading_order(objects: Iterable[Obj]) -> Scene:
    """Objects from top left to bottom right.

    >>> [o.color for o in reading_order([Obj("red", "cross", 1, 0), Obj("blue", "cross", 0, 2)])]
    ['blue', 'red']
    """
    return tuple(sorted(objects, key=lambda o: (o.row, o.col)))


def free_cells(scene: Scene, board: Board = NINE) -> list[tuple[int, int]]:
    """Cells without an object, in reading order."""
    taken = {(o.row, o.col) for o in scene}
    return [cell for cell in board.cells if cell not in taken]


def new_object(
    color: str,
    shape: str,
    cell: tuple[int, int],
    rng: np.random.Generator | None = None,
    *,
    size: str = "",
    board: Board = NINE,
) -> Obj:
    """A clean object with a random place in its cell and a random radius; centred and of mean radius without `rng`."""
    low, high = board.radius(size)
    if rng is None:
        return Obj(color, shape, *cell, radius=(low + high) / 2, size=size)
    a, b, c = rng.random(3)
    dx, dy = (2 * a - 1) * board.jitter, (2 * b - 1) * board.jitter
    return Obj(color, shape, *cell, dx, dy, low + (high - low) * c, size=size)


def random_scene(num_objects: int, rng: np.random.Generator, board: Board = NINE) -> Scene:
    """Objects of any colour, shape and size in random cells, in reading order."""
    cells = sorted(int(i) for i in rng.permutation(len(board.cells))[:num_objects])
    return tuple(
        new_object(pick(COLORS, rng), pick(SHAPES, rng), board.cells[i], rng, size=board.any_size(rng), board=board)
        for i in cells
    )


def roughen(scene: Scene, index: int, rng: np.random.Generator) -> Scene:
    """The scene with one object malformed in a random way."""
    worn = scene[index]._replace(rough=pick(ROUGH_KINDS, rng), wear=float(rng.random()))
    return (*scene[:index], worn, *scene[index + 1 :])


class Edit(NamedTuple):
    """One change to a scene. `kind` is change (colour), turn (into a shape), make (of a size), add, remove or move.

    For `add` colour, shape, cell and size say what comes where; otherwise they name the object that is there.
    """

    kind: str
    color: str
    """Empty where the words leave it out."""
    shape: str
    row: int
    col: int
    to_color: str = ""
    to_shape: str = ""
    to_row: int = -1
    to_col: int = -1
    size: str = ""
    """Empty where the words leave it out."""
    to_size: str = ""


def apply_edit(scene: Scene, edit: Edit, rng: np.random.Generator | None = None, board: Board = NINE) -> Scene | None:
    """The scene after one edit; None when the edit does not fit it.

    Whatever the edit names is drawn clean afterwards, so turning a malformed circle into a circle repairs it. All other
    objects keep their exact place, size and looks.

    >>> after = apply_edit((Obj("red", "circle", 0, 0),), Edit("change", "", "circle", 0, 0, to_color="blue"))
    >>> after[0].color
    'blue'
    """
    at = next((i for i, o in enumerate(scene) if (o.row, o.col) == (edit.row, edit.col)), None)
    if edit.kind == "add":
        if at is not None:
            return None
        cell = (edit.row, edit.col)
        return (*scene, new_object(edit.color, edit.shape, cell, rng, size=edit.size, board=board))
    if at is None:
        return None
    old = scene[at]
    # What a malformed object is called is a guess, so its cell alone has to be right.
    named = edit.shape == old.shape and edit.color in ("", old.color) and edit.size in ("", old.size)
    if not old.rough and not named:
        return None
    if edit.kind == "remove":
        return scene[:at] + scene[at + 1 :]
    if edit.kind == "change":
        new = old._replace(color=edit.to_color, rough="", wear=0.0)
    elif edit.kind == "turn":
        new = old._replace(shape=edit.to_shape, rough="", wear=0.0)
    elif edit.kind == "make":
        radius = new_object(old.color, old.shape, old.cell, rng, size=edit.to_size, board=board).radius
        new = old._replace(size=edit.to_size, radius=radius, rough="", wear=0.0)
    else:
        if any((o.row, o.col) == (edit.to_row, edit.to_col) for o in scene):
            return None
        new = old._replace(row=edit.to_row, col=edit.to_col, rough="", wear=0.0)
    return (*scene[:at], new, *scene[at + 1 :])


def random_edit(scene: Scene, rng: np.random.Generator, board: Board = NINE) -> Edit:
    """An edit that fits the scene and changes it: any kind that the number of objects allows.

    Shape and cell name what is there. A colour in front of them made sampled words mix two objects ("the red circle top
    left" for a red cross and a circle top left), and tells nothing that the cell does not.
    """
    free = free_cells(scene, board)
    kinds = ["add"] if free else []
    if scene:
        kinds += ["change", "turn", "remove"] + (["move"] if free else []) + (["make"] if board.is_sized else [])
    kind = pick(kinds, rng)
    if kind == "add":
        return Edit("add", pick(COLORS, rng), pick(SHAPES, rng), *pick(free, rng), size=board.any_size(rng))
    o = pick(scene, rng)
    if kind == "change":
        return Edit("change", "", o.shape, o.row, o.col, to_color=pick([c for c in COLORS if c != o.color], rng))
    if kind == "turn":
        return Edit("turn", "", o.shape, o.row, o.col, to_shape=pick([s for s in SHAPES if s != o.shape], rng))
    if kind == "remove":
        return Edit("remove", "", o.shape, o.row, o.col)
    if kind == "make":
        return Edit("make", "", o.shape, o.row, o.col, to_size=pick([w for w in board.size_words if w != o.size], rng))
    row, col = pick(free, rng)
    return Edit("move", "", o.shape, o.row, o.col, to_row=row, to_col=col)
