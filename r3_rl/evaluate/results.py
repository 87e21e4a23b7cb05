"""What a run writes and prints of its two measurements: `evaluation.json`, `summary.json`, the table, the headline."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from r3_rl.evaluate.base import Bench
from r3_rl.evaluate.fixed_sets import digest
from r3_rl.evaluate.measured import Items, Measured, Values, differences
from r3_rl.observe.common_items import FILE
from r3_rl.observe.evaluation import Evaluation
from r3_rl.observe.measures import greedy
from r3_rl.observe.recorder import Recorder
from r3_rl.observe.statistics import Interval
from r3_rl.observe.text_table import headline_lines, table_lines

WIDTH = 118
"""Columns of what is printed, at most."""
IN_BOTH = (
    "draft",
    "final",
    "wrong_drafts_edited",
    "wrong_drafts_repaired",
    "right_drafts_kept",
    "questions",
    "ita_fixed",
    "listing",
    "plan_right",
    "image_right_given_plan",
    "other_draft",
    "other_final",
)
"""In `summary.json` with sampled texts (`draft_before`) and with greedy ones (`draft_greedy_before`)."""
IN_ONE = ("true_plan_drawn", "true_edit_drawn", "draft_pass_8", "entropy_plan", "entropy_critique")


def evaluation_of(bench: Bench[Any], before: Measured, after: Measured) -> Evaluation:
    """The bench's figures of both phases and the changes between them."""
    return Evaluation(
        before=bench.figures(before),
        after=bench.figures(after),
        differences=differences(before.values, after.values),
        words=before.words | after.words,
    )


def write_results(
    recorder: Recorder,
    evaluation: Evaluation,
    *,
    items: Items,
    seeds: Sequence[int],
    wall_s: float,
    values: Mapping[str, Values] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write `evaluation.json`, `summary.json` and, for `r3 compare`, `values.json`.

    Args:
        recorder: of the run.
        evaluation: before and after.
        items: what was measured on.
        seeds: of the run.
        wall_s: seconds that the run took.
        values: of each phase, item by item.
        more: what else `summary.json` has: figures of the section `eval`, the best step, an early end.
    """
    texts = items.texts()
    if values is not None:
        recorder.document(
            FILE,
            {
                "items": {name: [digest([text])[:8] for text in asked] for name, asked in texts.items()},
                "phases": {
                    phase: {name: [round(v, 6) for v in measured] for name, measured in of.items() if "/" not in name}
                    for phase, of in values.items()
                },
            },
        )
    recorder.document(
        "evaluation.json",
        {
            "phases": {"before": _documents(evaluation.before), "after": _documents(evaluation.after)},
            "differences": _documents(evaluation.differences),
            "words": evaluation.words,
        },
    )
    summary: dict[str, Any] = {}
    for name in (*IN_BOTH, *map(greedy, IN_BOTH), *IN_ONE):
        for phase, intervals in (("before", evaluation.before), ("after", evaluation.after)):
            if name in intervals:
                summary[f"{name}_{phase}"] = intervals[name].mean
        if name in evaluation.differences:
            summary[f"{name}_difference"] = evaluation.differences[name].as_dict()
    summary |= {"num_prompts": len(items.prompts), "seeds": list(seeds), "wall_s": round(wall_s, 1)}
    summary["sets"] = {name: digest(asked) for name, asked in texts.items()}
    recorder.document("summary.json", summary | dict(more or {}))


def _documents(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float | int]]:
    return {name: interval.as_dict() for name, interval in intervals.items()}


def print_table(evaluation: Evaluation) -> None:
    """Before -> after with 95 % intervals, in per cent, nats and levels, greedy above sampled.

    In a terminal that is too narrow for that, only the changes have their intervals; the report has them all.
    """
    lines = list(table_lines(evaluation))
    narrow = max(map(len, lines), default=0) > _columns()
    for line in lines:
        print(_short(line) if narrow else line)


_PHASES = re.compile(r"(.{38}) \[.{5}, .{5}\](?: \w+)?  ->  (.{5}) \[.{5}, .{5}\](?: \w+)? +(\S+) +(\[.*)")


def _short(line: str) -> str:
    """A line of the table without the intervals of the phases; one that has no change keeps what it has.

    >>> _short("draft                   greedy    87.8 [ 83.8,  91.0]  ->   88.4 [ 84.5,  91.5]    +0.6 [ -4.1,  +5.0]")
    'draft                   greedy    87.8  ->   88.4    +0.6 [ -4.1,  +5.0]'
    """
    found = _PHASES.fullmatch(line.rstrip())
    return f"{found[1]}  ->  {found[2]}   {found[3]:>5} {found[4]}" if found else line


def print_headline(evaluation: Evaluation) -> None:
    """The greedy figures, and after them the sampled ones with the entropy of the texts; a figure is not broken."""
    for line in headline_lines(evaluation):
        kept = re.sub(r" (?=->|[(\d+-])|(?<=->) ", "\N{NO-BREAK SPACE}", line)
        text = textwrap.fill(kept, width=_columns(), subsequent_indent="  ", break_on_hyphens=False)
        print(text.replace("\N{NO-BREAK SPACE}", " "))


def _columns() -> int:
    """Of the terminal; what is printed into a file may be as wide as a page."""
    return min(shutil.get_terminal_size(fallback=(WIDTH, 24)).columns, WIDTH)
