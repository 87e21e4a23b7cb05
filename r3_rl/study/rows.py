"""What a study's tables show: which figures, in which decoding, and how an effect is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from r3_rl.observe.evaluation import BY_TAG, OTHER, grouped_rows
from r3_rl.observe.evaluation import Row as Measured
from r3_rl.observe.measures import SHARE, greedy, measure_of, unit_of
from r3_rl.observe.statistics import Interval
from r3_rl.study.figures import ArmRuns, Effect

HEADLINE = ("draft", "final", "ita_fixed", "listing", "questions", "wrong_drafts_repaired")
"""What the short table shows, greedy."""
NOT_MEASURED = "–"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A figure of the tables."""

    name: str
    """With its decoding."""
    label: str
    group: str

    @property
    def is_share(self) -> bool:
        """Whether it is a share rather than a mean in some unit."""
        return unit_of(self.name) == SHARE

    @property
    def compared(self) -> bool:
        """Whether before and after training can be told apart by it."""
        measure = measure_of(self.name)
        return measure is None or measure.compared

    def words(self, effect: Effect | None, *, signed: bool) -> str:
        """A mean with its interval over the seeds; over the items where there is one seed.

        >>> Row(name="draft", label="", group="").words(
        ...     Effect(mean=0.5, per_seed=(0.5,), over_seeds=None, over_items=None), signed=True)
        '+50.0'
        """
        if effect is None:
            return NOT_MEASURED
        interval = effect.over_seeds or effect.over_items
        return self.around(effect.mean, interval, signed=signed)

    def base(self, arms: Sequence[ArmRuns]) -> str:
        """The figure before training, with its interval over the items: all runs begin as the same model."""
        run = next(iter(arms[0].runs.values()))
        found = run.evaluation.before.get(self.name)
        return NOT_MEASURED if found is None else self.around(found.mean, found, signed=False)

    def around(self, value: float, interval: Interval | None, *, signed: bool) -> str:
        """A value and its interval."""
        mean = self.number(value, signed=signed)
        if interval is None:
            return mean
        low, high = (self.number(bound, signed=signed) for bound in (interval.low, interval.high))
        return f"{mean} [{low}, {high}]"

    def number(self, value: float, *, signed: bool) -> str:
        """In points; a mean in its unit with two digits."""
        scaled, digits = (100 * value, 1) if self.is_share else (value, 2)
        text = f"{scaled:{'+' if signed else ''}.{digits}f}"
        return text.replace("-", "\N{MINUS SIGN}")


def rows_of(arms: Sequence[ArmRuns]) -> list[Row]:
    """Every figure that the first run measured and that is no part of another one; within a group greedy ones first."""
    run = next((run for arm in arms for run in arm.runs.values()), None)
    groups = grouped_rows(run.evaluation) if run else {}
    return [row for group, rows in groups.items() if group not in (BY_TAG, OTHER) for row in _of_group(group, rows)]


def _of_group(group: str, rows: Sequence[Measured]) -> Iterator[Row]:
    whole = [row for row in rows if "/" not in row.name]
    labels = [row.label for row in whole]
    said = [f"{row.label}, {row.hint}" if labels.count(row.label) > 1 else row.label for row in whole]
    for row, label in zip(whole, said, strict=True):
        if row.measure is not None and row.measure.decoding == "once":
            yield Row(name=row.name, label=label, group=group)
        elif row.greedy.phases:
            yield Row(name=greedy(row.name), label=f"{label}, greedy", group=group)
    for row, label in zip(whole, said, strict=True):
        if row.sampled.phases:
            yield Row(name=row.name, label=f"{label}, sampled", group=group)
