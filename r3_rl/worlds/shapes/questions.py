"""Questions about a scene and their answers: count, exists, colour, shape and size at a cell, relation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from r3_rl.worlds.shapes.board import NINE, Board
from r3_rl.worlds.shapes.language import cell_words
from r3_rl.worlds.shapes.scene import Scene
from r3_rl.worlds.shapes.terms import COLORS, NUMBERS, RELATIONS, SHAPES, holds, pick, plural

KINDS_IN_WORDS = {
    "count": "how many",
    "exists": "is there one",
    "color": "which colour",
    "shape": "which shape",
    "relation": "is it left of",
}
"""What tables call each kind."""
QUESTION_KINDS = tuple(KINDS_IN_WORDS)
_SIZE_KIND = {"size": "which size"}


def kinds_in_words(board: Board) -> Mapping[str, str]:
    """What tables call each kind of questions about a board."""
    return KINDS_IN_WORDS | _SIZE_KIND if board.is_sized else KINDS_IN_WORDS


class Asked(NamedTuple):
    """A question without its question mark, and the answer's word."""

    kind: str
    text: str
    answer: str
    about: Scene
    """The objects that the answer follows from."""


def ask(scene: Scene, kind: str, rng: np.random.Generator, board: Board = NINE) -> Asked:
    """A question of one kind about the scene. Where the answer is yes or no, each has about half of the questions.

    A relation needs two objects unlike all others; a scene without them is asked for a count.

    >>> ask((), "shape", np.random.default_rng(0)).answer
    'none'
    """
    if kind == "relation":
        kinds = [(o.color, o.shape) for o in scene]
        single = [o for o in scene if kinds.count((o.color, o.shape)) == 1]
        if len(single) >= 2:
            a, b = (single[i] for i in rng.permutation(len(single))[:2])
            wanted = rng.random() < 0.5
            fitting = [r for r in RELATIONS if holds(r, a.cell, b.cell) == wanted] or list(RELATIONS)
            relation = pick(fitting, rng)
            text = f"is the {a.color} {a.shape} {relation} the {b.color} {b.shape}"
            return Asked(kind, text, "yes" if holds(relation, a.cell, b.cell) else "no", (a, b))
        kind = "count"
    if kind == "count":
        return _count(scene, rng, board)
    if kind == "exists":
        return _exists(scene, rng)
    o = pick(scene, rng) if scene and rng.random() < 0.85 else None
    row, col = o.cell if o else pick(board.cells, rng)
    there = next((x for x in scene if x.cell == (row, col)), None)
    about = (there,) if there else ()
    where = cell_words(row, col, board)
    if kind == "shape":
        return Asked(kind, f"what shape is {where}", there.shape if there else "none", about)
    shape = o.shape if o else pick(SHAPES, rng)
    fits = there is not None and there.shape == shape
    answer = getattr(there, kind) if fits else "none"  # its color or size
    return Asked(kind, f"what {kind} is the {shape} {where}", answer, about)


def _count(scene: Scene, rng: np.random.Generator, board: Board) -> Asked:
    """Half of the time about something that is there."""
    o = pick(scene, rng) if scene and rng.random() < 0.5 else None
    color, shape = (o.color, o.shape) if o else (pick(COLORS, rng), pick(SHAPES, rng))
    form, size = int(rng.random() * (3 + board.is_sized)), ""
    if form == 3:
        color, size = "", o.size if o else board.any_size(rng)
    elif form < 2:
        color, shape = (color, "") if form == 0 else ("", shape)
    about = tuple(x for x in scene if color in ("", x.color) and shape in ("", x.shape) and size in ("", x.size))
    what = " ".join(word for word in (size, color, plural(shape) if shape else "") if word)
    return Asked("count", f"how many {what}", NUMBERS[len(about)], about)


def _exists(scene: Scene, rng: np.random.Generator) -> Asked:
    """A "no" is mostly a near miss: the colour of one object and the shape of another."""
    present = {(o.color, o.shape) for o in scene}
    if present and rng.random() < 0.5:
        color, shape = pick(sorted(present), rng)
    else:
        near = [(a, b) for a in {o.color for o in scene} for b in {o.shape for o in scene} if (a, b) not in present]
        anything = [(a, b) for a in COLORS for b in SHAPES if (a, b) not in present]
        color, shape = pick(sorted(near) if near and rng.random() < 0.6 else anything, rng)
    about = tuple(o for o in scene if (o.color, o.shape) == (color, shape))
    return Asked("exists", f"is there a {color} {shape}", "yes" if about else "no", about)
