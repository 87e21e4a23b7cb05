"""What tells one world of shapes from another: its grid, sizes, words and kinds of prompts. All else is shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from r3_rl.worlds.shapes.requests import NINE_KINDS, Group, PromptKind, kind_of_nine
from r3_rl.worlds.shapes.terms import pick

CELL_SIZE = 12
"""Pixels of a cell's side: one patch of the model."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large objects of one size are."""

    word: str
    """What texts call it; empty in a world with one size, whose texts do not name it."""
    radius: tuple[float, float]
    """Least and most half extent, in pixels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Board:
    """A square grid of cells and what stands on it.

    >>> NINE.image_size, len(NINE.cells), NINE.is_sized
    (36, 9, False)
    """

    name: str
    """Of the world."""
    rows: tuple[str, ...]
    """The first of the two words of a cell, from top to bottom."""
    columns: tuple[str, ...]
    """The second, from left to right; as many as rows."""
    sizes: tuple[Size, ...]
    """From small to large, apart from each other."""
    jitter: float
    """Objects are up to so many pixels off the middle of their cell."""
    template_radii: tuple[float, float, int]
    """Least, most and number of the radii that the inspector compares with."""
    num_objects: tuple[int, int]
    """Fewest and most of a random scene."""
    kinds: Mapping[str, PromptKind]
    """Of prompts, by their tag."""
    most_relations: int
    """Most that one prompt states."""
    kind_of: Callable[[Sequence[Group], Sequence[str]], str]
    """Groups and relations of a request -> the kind that has this form."""
    salt: str
    """Of the hash that holds prompts out."""
    answers_list_all: bool
    """Whether a question is answered after a listing of everything that is seen, or only of what it is about."""

    @property
    def side(self) -> int:
        """Cells in a row."""
        return len(self.rows)

    @property
    def image_size(self) -> int:
        """Height and width of its images in pixels."""
        return self.side * CELL_SIZE

    @cached_property
    def cells(self) -> tuple[tuple[int, int], ...]:
        """(row, column) in reading order."""
        return tuple((row, col) for row in range(self.side) for col in range(self.side))

    @property
    def is_sized(self) -> bool:
        """Whether texts say how large objects are."""
        return len(self.sizes) > 1

    @property
    def size_words(self) -> tuple[str, ...]:
        """The words of the sizes; none if texts do not name them."""
        return tuple(size.word for size in self.sizes) if self.is_sized else ()

    def radius(self, size: str) -> tuple[float, float]:
        """Least and most half extent of a size, in pixels."""
        return next(this.radius for this in self.sizes if this.word == size)

    def any_size(self, rng: np.random.Generator) -> str:
        """The word of a random size; nothing is drawn where there is only one."""
        return pick(self.size_words, rng) if self.is_sized else ""

    def any_number(self, rng: np.random.Generator) -> int:
        """Of objects in a random scene."""
        fewest, most = self.num_objects
        return fewest + int(rng.random() * (most - fewest + 1))

    @property
    def harder_tags(self) -> tuple[str, ...]:
        """Kinds that ask for several things at once."""
        return tuple(tag for tag, kind in self.kinds.items() if kind.harder)


NINE = Board(
    name="shapes",
    rows=("top", "middle", "bottom"),
    columns=("left", "center", "right"),
    sizes=(Size(word="", radius=(3.6, 4.4)),),
    jitter=1.3,
    template_radii=(3.4, 4.6, 5),
    num_objects=(0, 6),
    kinds=NINE_KINDS,
    most_relations=1,
    kind_of=kind_of_nine,
    salt="5 ",  # of the first ten, the one that holds out three of the twelve counting prompts; most hold out one
    answers_list_all=True,
)
"""The embedded world: nine cells, one size."""
