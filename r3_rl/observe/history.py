"""The logged numbers of a run, metric by metric: what guards judge and charts draw."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """One metric over a run: the steps in which it was measured, and its values."""

    steps: np.ndarray
    """int64 [N], rising."""
    values: np.ndarray
    """float64 [N], finite."""

    def __len__(self) -> int:
        return self.values.size

    def last(self, count: int) -> Series:
        """The last `count` values, or all if there are fewer."""
        return Series(steps=self.steps[-count:], values=self.values[-count:])

    def within(self, first: int, last: int) -> Series:
        """The values of the steps from `first` to `last`, both included."""
        return self._where((self.steps >= first) & (self.steps <= last))

    def at(self, steps: np.ndarray, *, present: bool = True) -> Series:
        """The values of these steps; with `present` False those of all others."""
        return self._where(np.isin(self.steps, steps) == present)

    def _where(self, kept: np.ndarray) -> Series:
        return Series(steps=self.steps[kept], values=self.values[kept])


class History:
    """Lines of `metrics.jsonl`, held by metric, so that a line more costs no look at the lines before it.

    Args:
        rows: lines in order, each with `step` and whatever was measured in that step.

    >>> history = History([{"step": 1, "kl": 0.5}, {"step": 2, "kl": None, "not_finite": ["kl"]}])
    >>> history.add({"step": 3, "kl": 0.75})
    >>> history.series("kl").values, history.not_finite
    (array([0.5 , 0.75]), [(2, ('kl',))])
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._columns: dict[str, tuple[array[int], array[float]]] = {}
        self.num_rows = 0
        self.step = 0
        """Of the last line; 0 without one."""
        self.not_finite: list[tuple[int, tuple[str, ...]]] = []
        """(step, metrics) of the lines that lost a value that was not finite."""
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """Take one more line."""
        self.step, self.num_rows = int(row["step"]), self.num_rows + 1
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                steps, values = self._columns.setdefault(name, (array("q"), array("d")))
                steps.append(self.step)
                values.append(value)
        if row.get("not_finite"):
            self.not_finite.append((self.step, tuple(row["not_finite"])))

    def names(self, prefix: str, suffix: str = "") -> list[str]:
        """Metrics whose names begin and end like this, in the order in which they first came."""
        return [name for name in self._columns if name.startswith(prefix) and name.endswith(suffix)]

    def series(self, name: str, last: int | None = None) -> Series:
        """One metric with its steps; empty for a metric that never came.

        Args:
            name: of the metric.
            last: how many values, from the end; None gives all.
        """
        steps, values = self._columns.get(name, (array("q"), array("d")))
        begin = 0 if last is None else max(0, len(steps) - last)
        return Series(steps=np.array(steps[begin:], dtype=np.int64), values=np.array(values[begin:], dtype=np.float64))


def series(rows: Sequence[Mapping[str, Any]], name: str) -> Series:
    """The finite values of one metric in logged lines.

    >>> series([{"step": 1, "kl": 0.5}, {"step": 2, "kl": None}, {"step": 3}], "kl").values
    array([0.5])
    """
    return History({"step": row["step"], name: row.get(name)} for row in rows).series(name)
