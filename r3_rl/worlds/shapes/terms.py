"""What shapes are called, whatever the board: colours, shapes, numbers, relations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

COLORS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = ("small", "large")
"""Of boards that tell sizes apart."""
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RELATIONS = ("left of", "right of", "above", "below")
MIRROR = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
"""A stands in a relation to B as B stands in its mirror to A."""


def plural(shape: str) -> str:
    """The word for several.

    >>> plural("cross")
    'crosses'
    """
    return shape + ("es" if shape.endswith("s") else "s")


def holds(relation: str, first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Does the relation hold between two (row, column) cells? It asks for another column (or row) in that direction.

    >>> holds("left of", (0, 0), (2, 1)), holds("above", (1, 0), (1, 2))
    (True, False)
    """
    if relation in ("left of", "right of"):
        return first[1] < second[1] if relation == "left of" else first[1] > second[1]
    return first[0] < second[0] if relation == "above" else first[0] > second[0]


def pick(options: Sequence[T], rng: np.random.Generator) -> T:
    """One of the options, uniformly. `Generator.choice` is twenty times slower and turns strings into numpy's."""
    return options[int(rng.random() * len(options))]
