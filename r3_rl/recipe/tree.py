"""A recipe as written: plain values that know their lines, so that a mistake can be shown where it stands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from r3_rl.errors import MAX_LINE, one_line

Path = tuple[str | int, ...]
"""Keys and list positions from the root of the recipe."""


def split(dotted: str) -> Path:
    """The path that a dotted key stands for.

    >>> split("rewards.0.weight")
    ('rewards', 0, 'weight')
    """
    # a position of ten digits is none: it stays a word, which no list has
    return tuple(int(part) if part.isdecimal() and len(part) < 10 else part for part in dotted.split("."))


def text_problem(text: str) -> str:
    """Return why a text cannot be stored or shown, or "".

    >>> text_problem("a red cup"), text_problem("a \\ud83d cat")
    ('', 'half of a surrogate pair (\\\\ud83d)')
    """
    if "\0" in text:
        return "a NUL character"
    half = next((c for c in text if "\ud800" <= c <= "\udfff"), "")
    return f"half of a surrogate pair (\\u{ord(half):04x})" if half else ""


def unfilled(text: str) -> str:
    """Return the hint for a text with a variable, which other tools fill in, or "".

    >>> unfilled("$HOME/p.jsonl"), unfilled("a $ 5")
    ('; variables such as $HOME are not filled in, write the value', '')
    """
    found = re.search(r"\$(?:\w+|\{[^}]{0,30}\}?)", text)
    return f"; variables such as {found[0]} are not filled in, write the value" if found else ""


class Place(NamedTuple):
    """Where something was written: `recipe.yaml:12`, or an override (which has no line)."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


class Mistake(NamedTuple):
    """One line for the user."""

    place: Place
    path: Path
    message: str

    def __str__(self) -> str:
        dotted = ".".join(map(str, self.path))
        where = one_line(f"{self.place}", 80) + (f": {one_line(dotted, 60)}" if dotted else "")
        return f"{where}: {one_line(self.message, MAX_LINE - len(where) - 2)}"


@dataclass
class Tree:
    """Values of a recipe as written, with the place of each."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Path, Place] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    unreadable: set[Path] = field(default_factory=set)
    """Where a value was written that could not be read; the empty path where a whole file could not."""

    def place_of(self, path: Path, default: Place) -> Place:
        """Place of the value, or of the nearest value around it that was written at all."""
        around = (path[:end] for end in range(len(path), 0, -1))
        return next((self.places[known] for known in around if known in self.places), default)

    def forget(self, path: Path, value: Any) -> None:
        """Drop the places at and below the path, where `value` stood, which is replaced."""
        for known in _paths(path, value):
            self.places.pop(known, None)

    def overlay(self, other: Tree) -> None:
        """Write the other tree over this one: sections are merged key by key, everything else is replaced."""
        self.mistakes += other.mistakes
        self.unreadable |= other.unreadable
        self._overlay(self.values, other.values, other, ())

    def _overlay(self, below: dict[str, Any], above: dict[str, Any], other: Tree, path: Path) -> None:
        for key, value in above.items():
            here = (*path, key)
            if isinstance(value, dict) and isinstance(below.get(key), dict):
                self.places[here] = other.places[here]
                self._overlay(below[key], value, other, here)
                continue
            self.forget(here, below.get(key))
            below[key] = value
            self.places.update({known: other.places[known] for known in _paths(here, value)})


def _paths(path: Path, value: Any) -> Iterator[Path]:
    """The path of a value and of everything in it."""
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _paths((*path, key), item)
