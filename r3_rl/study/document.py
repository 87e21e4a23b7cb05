"""A study as `study.md` and `figures.jsonl`: the tables as text, and the figures of every run, small enough to keep."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from r3_rl.observe.progress import duration
from r3_rl.observe.recorder import write_document
from r3_rl.study.figures import ArmRuns
from r3_rl.study.rows import HEADLINE, NOT_MEASURED, Row

TABLES, NUMBERS = "study.md", "figures.jsonl"


def write_documents(
    folder: Path, arms: Sequence[ArmRuns], rows: Sequence[Row], against: ArmRuns | None, lead: str
) -> None:
    """Write both files.

    Args:
        folder: of the study.
        arms: with a finished run each.
        rows: figures to show.
        against: the arm that the others are compared with; None leaves the comparison out.
        lead: what was run, one paragraph.
    """
    lines = [f"# Study: {folder.resolve().name}", "", lead, "", *_short(arms, rows), "", *_changes(arms, rows)]
    if against:
        lines += ["", *_compared(arms, rows, against)]
    lines += ["", *_costs(arms)]
    write_document(folder / TABLES, "\n".join(lines) + "\n")
    write_document(folder / NUMBERS, "".join(f"{json.dumps(number)}\n" for number in _numbers(arms)))


def _short(arms: Sequence[ArmRuns], rows: Sequence[Row]) -> Iterator[str]:
    shown = [row for row in rows if row.name.removesuffix("_greedy") in HEADLINE and row.name.endswith("_greedy")]
    yield "## Change by training, greedy, in points"
    yield ""
    yield from _table(
        ["arm", *(row.label.removesuffix(", greedy") for row in shown)],
        [
            ["base, per cent", *(row.base(arms) for row in shown)],
            *(
                [
                    arm.arm.label,
                    *(
                        _bold(
                            row.words(effect := arm.change(row.name), signed=True), effect is not None and effect.clear
                        )
                        for row in shown
                    ),
                ]
                for arm in arms
            ),
        ],
    )


def _changes(arms: Sequence[ArmRuns], rows: Sequence[Row]) -> Iterator[str]:
    yield "## All figures: base, and change by training"
    yield ""
    body = []
    for row in rows:
        cells = []
        for arm in arms:
            effect = arm.change(row.name) if row.compared else arm.level(row.name, "after")
            cells.append(
                _bold(row.words(effect, signed=row.compared), effect is not None and row.compared and effect.clear)
            )
        base = row.base(arms)
        body.append([row.label, base, *cells])
    yield from _table(["", "base", *(arm.arm.label for arm in arms)], _grouped(rows, body))


def _compared(arms: Sequence[ArmRuns], rows: Sequence[Row], against: ArmRuns) -> Iterator[str]:
    yield f"## After training, each arm minus {against.arm.label}: the same seeds and items"
    yield ""
    others = [arm for arm in arms if arm is not against]
    body = []
    for row in rows:
        effects = [arm.minus(against, row.name) for arm in others]
        cells = [_bold(row.words(effect, signed=True), effect is not None and effect.clear) for effect in effects]
        body.append([row.label, *cells])
    yield from _table(["", *(arm.arm.label for arm in others)], _grouped(rows, body))


def _costs(arms: Sequence[ArmRuns]) -> Iterator[str]:
    yield "## What each arm cost, a run"
    yield ""
    yield from _table(["arm", *COSTS], [[arm.arm.label, *costs_of(arm)] for arm in arms])


COSTS = ("seeds", "images drawn", "tokens", "training", "all, measuring included")


def costs_of(arm: ArmRuns) -> list[str]:
    """Images, tokens and seconds of an arm's run, averaged over its seeds."""
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


def _numbers(arms: Sequence[ArmRuns]) -> Iterator[dict[str, object]]:
    for arm in arms:
        for seed, run in arm.runs.items():
            for phase, found in (("before", run.evaluation.before), ("after", run.evaluation.after)):
                means = {name: round(interval.mean, 5) for name, interval in found.items()}
                yield {"arm": arm.arm.name, "seed": seed, "phase": phase, "means": means}


def _grouped(rows: Sequence[Row], body: Sequence[list[str]]) -> list[list[str]]:
    """Lines with the name of each group above its first."""
    lines: list[list[str]] = []
    group = ""
    for row, cells in zip(rows, body, strict=True):
        if row.group != group:
            group = row.group
            lines.append([f"*{group}*", *[""] * (len(cells) - 1)])
        lines.append(cells)
    return lines


def _bold(text: str, clear: bool) -> str:
    return f"**{text}**" if clear else text


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    yield from (f"| {' | '.join(cells)} |" for cells in body)
