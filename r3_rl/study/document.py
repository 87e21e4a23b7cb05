"""A study as `study.md` and `figures.jsonl`: the tables as text, and the figures of every run, small enough to keep."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from r3_rl.benches.text import markdown_line
from r3_rl.observe.measures import GREEDY
from r3_rl.observe.recorder import write_document
from r3_rl.study.figures import ArmRuns
from r3_rl.study.rows import HEADLINE
from r3_rl.study.tables import COSTS, Cell, Report, Table, costs_of

TABLES, NUMBERS = "study.md", "figures.jsonl"


def write_documents(folder: Path, report: Report) -> None:
    """Write `study.md` and `figures.jsonl` into a study's folder."""
    lines = [f"# Study: {report.title}", "", report.lead, "", "## Change by training, greedy, in points", ""]
    lines += _short(report)
    lines += ["", "## All figures: base, and change by training", "", *_table(report.changes)]
    if report.compared.heads:
        title = f"## After training, each arm minus {report.against}: the same seeds and items"
        lines += ["", title, "", *_table(report.compared)]
    lines += ["", "## What each arm cost, a run", ""]
    lines += _lines(["arm", *COSTS], [[arm.arm.label, *costs_of(arm)] for arm in report.arms])
    write_document(folder / TABLES, "\n".join(lines) + "\n")
    write_document(folder / NUMBERS, "".join(f"{json.dumps(number)}\n" for number in _numbers(report.arms)))


def _short(report: Report) -> Iterator[str]:
    """Arms down, the figures that matter most across."""
    wanted = [f"{name}{GREEDY}" for name in HEADLINE]
    shown = [(row, cells) for row, cells in report.changes.lines if row.name in wanted]
    columns = [list(map(_words, cells)) for _, cells in shown]
    body = [[head, *(column[place] for column in columns)] for place, head in enumerate(report.changes.heads)]
    yield from _lines(["", *(row.label.removesuffix(", greedy") for row, _ in shown)], body)


def _table(table: Table) -> Iterator[str]:
    body: list[list[str]] = []
    group = ""
    for row, cells in table.lines:
        if row.group != group:
            group = row.group
            body.append([f"*{group}*", *[""] * len(cells)])
        body.append([row.label, *map(_words, cells)])
    yield from _lines(["", *table.heads], body)


def _words(cell: Cell) -> str:
    return f"**{cell.text}**" if cell.clear else cell.text


def _lines(head: Sequence[str], body: Sequence[Sequence[str]]) -> Iterator[str]:
    yield markdown_line(head)
    yield markdown_line(["---"] * len(head))
    yield from map(markdown_line, body)


def _numbers(arms: Sequence[ArmRuns]) -> Iterator[dict[str, object]]:
    for arm in arms:
        for seed, run in arm.runs.items():
            for phase, found in (("before", run.evaluation.before), ("after", run.evaluation.after)):
                means = {name: round(interval.mean, 5) for name, interval in found.items()}
                yield {"arm": arm.arm.name, "seed": seed, "phase": phase, "means": means}
