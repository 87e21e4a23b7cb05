"""What a prompt asks for, read from GenEval's columns `include`, `exclude` and `tag`.

Source: the prompt files of GenEval (MIT). Plain Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from r3_rl.errors import DataError

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""What a colour may be, in the order in which a reason lists them."""

RELATIONS = ("left of", "right of", "above", "below")


_MOST_ENTRIES = 64  # each is looked for among all objects found


@dataclass(frozen=True, kw_only=True)
class Clause:
    """One entry of `include`: at least `count` objects, perhaps of a colour, perhaps beside earlier ones."""

    name: str
    """Class."""
    count: int
    """1 or more."""
    colour: str | None
    """One of `COLOURS`."""
    relation: str | None
    """One of `RELATIONS`."""
    target: int
    """Which earlier clause the relation is about; -1 without a relation."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a prompt asks for."""

    include: tuple[Clause, ...]
    exclude: tuple[tuple[str, int], ...]
    """(class, n): there must be fewer than n."""
    counting: bool
    """True for prompts tagged `counting`."""


def read_request(include: Any, exclude: Any = None, tag: str | None = None) -> Request:
    """Read GenEval's columns; raises `DataError` that names the entry for what the rules cannot judge.

    >>> read_request([{"class": "dog", "count": 1, "color": "red"}]).include[0].colour
    'red'
    >>> read_request([{"class": "dog", "count": 1, "size": "large"}])
    Traceback (most recent call last):
    r3_rl.errors.DataError: include[0] has 'size', which GenEval's rules do not judge; they know class, count, ...
    """
    for name, entries in (("include", include), ("exclude", exclude)):
        if len(entries or ()) > _MOST_ENTRIES:
            raise DataError(f"{name} has {len(entries)} entries", hint=f"at most {_MOST_ENTRIES} are judged")
    clauses = tuple(_read_clause(entry, place) for place, entry in enumerate(include or ()))
    limits = []
    for place, entry in enumerate(exclude or ()):
        name, count = _read_count(entry, f"exclude[{place}]", {"class", "count"})
        limits.append((name, count))
    return Request(include=clauses, exclude=tuple(limits), counting=tag == "counting")


def _read_count(entry: Any, place: str, known: set[str]) -> tuple[str, int]:
    if not isinstance(entry, Mapping):
        raise DataError(f"{place} is a {type(entry).__name__}", hint='write {"class": "dog", "count": 1}')
    unknown = sorted(set(entry) - known)
    if unknown:
        raise DataError(
            f"{place} has '{unknown[0]}', which GenEval's rules do not judge",
            hint="they know class, count, color and position",
        )
    name, count = entry.get("class"), entry.get("count")
    if not isinstance(name, str) or not name:
        raise DataError(f"{place} names no class", hint='write {"class": "dog", "count": 1}')
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise DataError(f"{place}.count is {count!r}", hint="it must be a whole number from 1")
    return name, count


def _read_clause(entry: Any, place: int) -> Clause:
    where = f"include[{place}]"
    name, count = _read_count(entry, where, {"class", "count", "color", "position"})
    colour, position = entry.get("color"), entry.get("position")
    if colour is not None and colour not in COLOURS:
        raise DataError(f"{where}.color is {colour!r}", hint=f"the colours are {', '.join(COLOURS)}")
    if position is None:
        return Clause(name=name, count=count, colour=colour, relation=None, target=-1)
    relation, target = position if isinstance(position, (list, tuple)) and len(position) == 2 else (None, None)
    if relation not in RELATIONS or not isinstance(target, int) or not 0 <= target < place:
        raise DataError(
            f"{where}.position is {position!r}",
            hint=f"it must be [relation, index of an earlier entry]; the relations are {', '.join(RELATIONS)}",
        )
    return Clause(name=name, count=count, colour=colour, relation=relation, target=target)
