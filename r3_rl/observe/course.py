"""The metric that a run keeps its best adapter by: its value at every step that was measured, and which is the best."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from r3_rl.errors import InputError
from r3_rl.observe.bench_table import FOLDER, said
from r3_rl.observe.statistics import Interval

BEST = "best"
"""Folder of a run: the adapter, or the full weights, of the best step."""
BEST_FILE = "best.json"
"""In it: which step, and by what."""
COURSE = f"{FOLDER}/course.json"
"""In a run: every value so far, for the report."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure of a bench that steps are compared by."""

    name: str
    """`BENCH/FIGURE`, as a recipe has it."""
    words: str
    """As people say it."""
    unit: str
    """`share`, `change`, `number` or `distance`."""
    wanted: str
    """`more` or `less`."""
    marks: str = ""
    """Of its items and settings: values with other marks cannot be compared."""

    def gain(self, value: float, over: float) -> float:
        """By how much one value is better than another.

        >>> Metric(name="b/f", words="", unit="number", wanted="less").gain(2.0, over=3.0)
        1.0
        """
        return value - over if self.wanted == "more" else over - value


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The metric after a step."""

    step: int
    value: Interval


@dataclass(frozen=True, kw_only=True)
class Course:
    """The metric over a run.

    >>> metric = Metric(name="b/f", words="f of b", unit="share", wanted="more")
    >>> course = Course(metric=metric, base=None)
    >>> for step, share in ((2, 0.25), (4, 0.75), (6, 0.5)):
    ...     course = course.with_reading(step, Interval(mean=share, low=share, high=share, count=4))
    >>> course.best.step, course.waited(min_gain=0.0)
    (4, 1)
    """

    metric: Metric
    base: Interval | None
    """Before training; for comparison only, since the base has no adapter to keep."""
    readings: tuple[Reading, ...] = ()
    """In the order of the steps."""

    @property
    def best(self) -> Reading | None:
        """The first of the best readings; None before the first one."""
        found: Reading | None = None
        for reading in self.readings:
            if found is None or self.metric.gain(reading.value.mean, found.value.mean) > 0:
                found = reading
        return found

    def waited(self, *, min_gain: float) -> int:
        """Return how many readings in a row, up to the last one, were not better than the best one before them by more
        than `min_gain` (0 or more)."""
        best, waited = None, 0
        for reading in self.readings:
            gain = None if best is None else self.metric.gain(reading.value.mean, best)
            waited = 0 if gain is None or gain > min_gain else waited + 1
            best = reading.value.mean if gain is None or gain > 0 else best
        return waited

    def with_reading(self, step: int, value: Interval) -> Course:
        """Return the course with one reading more, of a later step."""
        return replace(self, readings=(*self.readings, Reading(step=step, value=value)))

    def said(self, value: Interval) -> str:
        """A value in the metric's unit, with its interval."""
        return said(value, self.metric.unit)

    def document(self) -> dict[str, Any]:
        """What `eval/course.json` and a checkpoint's state hold."""
        return {
            "metric": asdict(self.metric),
            "base": None if self.base is None else self.base.as_dict(),
            "readings": [{"step": reading.step, **reading.value.as_dict()} for reading in self.readings],
            "best": None if self.best is None else self.best.step,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Course:
        """Read what `document` wrote. Raises KeyError, TypeError or ValueError for another shape."""
        base = document["base"]
        return cls(
            metric=Metric(**document["metric"]),
            base=None if base is None else Interval.from_dict(base),
            readings=tuple(
                Reading(step=int(row["step"]), value=Interval.from_dict(row)) for row in document["readings"]
            ),
        )

    def summary(self) -> dict[str, Any]:
        """The best step as `best.json` and `summary.json` have it; empty before the first reading."""
        best = self.best
        if best is None:
            return {}
        value = best.value
        return {
            "step": best.step,
            "metric": self.metric.name,
            "words": self.metric.words,
            "wanted": self.metric.wanted,
            "unit": self.metric.unit,
            "value": value.mean,
            "low": value.low,
            "high": value.high,
            "count": value.count,
        }


def best_folder(run: str | Path) -> Path:
    """Return the folder of a run's best adapter.

    Raises:
        InputError: no such run, or it kept none.
    """
    run = Path(run)
    if not run.is_dir():
        raise InputError(f"{run}: no such folder", hint="give the folder of a run")
    if not (run / BEST / BEST_FILE).is_file():
        raise InputError(f"{run} has kept no best adapter", hint="`eval.keep_best: true` in a recipe keeps one")
    return run / BEST


def kept_words(folder: Path) -> str:
    """Two sentences on the best adapter in a folder, for its card; "" for any other adapter."""
    found = read_best(folder)
    try:
        value = Interval(mean=found["value"], **{end: found[end] for end in ("low", "high", "count")})
        return (
            f"These are the weights of step {found['step']}, which was kept as the best by {found['words']} "
            f"(`{found['metric']}`): {said(value, found['unit'])}. The step was chosen by this figure, so it flatters "
            "a little; the tables below are of the run's last step."
        )
    except (KeyError, TypeError, ValueError):
        return ""


def read_best(folder: Path) -> Mapping[str, Any]:
    """Return what `best.json` in a folder says; nothing without a readable one."""
    try:
        found = json.loads((folder / BEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
