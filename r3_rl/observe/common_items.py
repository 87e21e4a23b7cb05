"""Figures of several runs on the items that they share: the same prompts, pairwise, or else as independent samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r3_rl.observe.evaluation import Figure
from r3_rl.observe.measures import OWN, SHARE, measure_of, unit_of
from r3_rl.observe.statistics import Interval, mean_of, paired_difference, share, unpaired_difference

FILE = "values.json"
OF_THE_BASE = ("wrong", "right", "base_drafts")
"""Sets of which half are the base's own drafts: another set is easier or harder, not another sample."""


@dataclass(frozen=True, kw_only=True)
class ItemValues:
    """What a run measured, item by item; empty for a run that did not keep it."""

    items: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By set: a digest of each item, in order."""
    phases: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    """`before` and `after`: values by name."""

    @classmethod
    def read(cls, folder: Path) -> ItemValues:
        """Read a run's `values.json`."""
        try:
            document: Any = json.loads((folder / FILE).read_text(encoding="utf-8"))
            return cls(items=document["items"], phases=document["phases"])
        except (OSError, ValueError, KeyError, TypeError):
            return cls()

    def of(self, name: str, phase: str) -> Sequence[float]:
        """Values of a figure, if there is one for each item of its set; else none."""
        measure = measure_of(name)
        values = self.phases.get(phase, {}).get(name, ())
        known = self.items.get(measure.items if measure else "prompts", ())
        return values if len(values) == len(known) else ()


def interval_of(name: str) -> Callable[[Sequence[float]], Interval]:
    """How the interval of a figure's values is made: Wilson's for a share, else the bootstrap's for a mean."""
    return share if unit_of(name) == SHARE else mean_of


def set_of(name: str) -> str:
    """The set that a figure is measured on."""
    measure = measure_of(name)
    return measure.items if measure else "prompts"


def num_common(name: str, runs: Sequence[ItemValues]) -> int:
    """How many first items of a figure's set all runs share; 0 unless one set begins with every other.

    >>> a, b = ItemValues(items={"prompts": ["x", "y", "z"]}), ItemValues(items={"prompts": ["x", "y"]})
    >>> num_common("draft", [a, b]), num_common("draft", [a, ItemValues(items={"prompts": ["y"]})])
    (2, 0)
    """
    if set_of(name) == OWN:
        return 0
    sets = [run.items.get(set_of(name), ()) for run in runs]
    shortest = min(sets, key=len)
    return len(shortest) if all(list(this[: len(shortest)]) == list(shortest) for this in sets) else 0


def first_items(name: str, run: ItemValues, count: int) -> Figure | None:
    """A figure on the first items only; None if its values are not known item by item."""
    before, after = run.of(name, "before")[:count], run.of(name, "after")[:count]
    if not before and not after:
        return None
    interval = interval_of(name)
    return Figure(
        before=interval(before) if before else None,
        after=interval(after) if after else None,
        difference=paired_difference(before, after) if before and after else None,
    )


def after_training(name: str, one: ItemValues, other: ItemValues, count: int) -> Interval | None:
    """other - one after training on the first `count` items, paired; None if values are not known item by item."""
    first, second = one.of(name, "after")[:count], other.of(name, "after")[:count]
    return paired_difference(first, second) if first and second else None


def independent(name: str, one: Interval | None, other: Interval | None) -> Interval | None:
    """other - one of two shares as of independent samples, which is wider than paired; None for means."""
    if one is None or other is None or unit_of(name) != SHARE:
        return None
    return unpaired_difference(_cases(one), _cases(other))


def _cases(interval: Interval) -> list[float]:
    right = round(interval.mean * interval.count)
    return [1.0] * right + [0.0] * (interval.count - right)
