"""The tables of a study, worked out once for both of its reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from r3_rl.observe.progress import duration
from r3_rl.study.figures import ArmRuns, Effect
from r3_rl.study.rows import NOT_MEASURED, Row, rows_of

COSTS = ("seeds", "images drawn", "tokens", "training", "all, measuring included")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A figure of an arm."""

    text: str
    clear: bool = False
    """Whether it is a change that no interval takes for chance (`Effect.clear`)."""
    by_seed: str = ""
    """The same of each seed, in order."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Figures down, arms across."""

    heads: tuple[str, ...]
    """Of the columns."""
    lines: tuple[tuple[Row, tuple[Cell, ...]], ...]
    """A cell for each column."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What both reports of a study show."""

    title: str
    lead: str
    """What was run, one paragraph."""
    arms: tuple[ArmRuns, ...]
    """With a finished run each."""
    against: str
    """The words of the arm that the others are compared with."""
    changes: Table
    """The base, then what training changed in each arm."""
    compared: Table
    """Each other arm minus that one, after training; without columns where there is no other."""


def report_of(title: str, lead: str, arms: Sequence[ArmRuns], against: ArmRuns) -> Report:
    """Return the tables of the arms.

    Args:
        title: of the study.
        lead: what was run, one paragraph.
        arms: with a finished run each, at least one.
        against: that of them which the others are compared with.
    """
    rows, others = rows_of(arms), [arm for arm in arms if arm is not against]
    changes = [(row, (Cell(text=row.base(arms)), *(_change(row, arm) for arm in arms))) for row in rows]
    compared = [(row, tuple(_cell(row, arm.minus(against, row.name), signed=True) for arm in others)) for row in rows]
    return Report(
        title=title,
        lead=lead,
        arms=tuple(arms),
        against=against.arm.label,
        changes=Table(heads=("base, per cent", *(arm.arm.label for arm in arms)), lines=tuple(changes)),
        compared=Table(heads=tuple(arm.arm.label for arm in others), lines=tuple(compared)),
    )


def costs_of(arm: ArmRuns) -> list[str]:
    """Images, tokens and seconds of an arm's run, averaged over its seeds; a text for each of COSTS."""
    images, tokens = arm.total("image/count"), arm.total("num_tokens", last=True)
    trained = arm.total("time/step_s")
    walls = [run.summary.get("wall_s") for run in arm.runs.values()]
    known = [float(wall) for wall in walls if isinstance(wall, int | float)]
    return [
        ", ".join(map(str, arm.runs)),
        NOT_MEASURED if images is None else f"{images:,.0f}",
        NOT_MEASURED if tokens is None else f"{tokens:,.0f}",
        NOT_MEASURED if trained is None else duration(trained),
        duration(sum(known) / len(known)) if known else NOT_MEASURED,
    ]


def _change(row: Row, arm: ArmRuns) -> Cell:
    """After - before training; after it alone where the two cannot be compared."""
    return _cell(row, arm.change(row.name) if row.compared else arm.level(row.name, "after"), signed=row.compared)


def _cell(row: Row, effect: Effect | None, *, signed: bool) -> Cell:
    seeds = ", ".join(row.number(value, signed=signed) for value in effect.per_seed) if effect else ""
    clear = signed and effect is not None and effect.clear
    return Cell(text=row.words(effect, signed=signed), clear=clear, by_seed=seeds)
