"""The report's sections made of curves: what was logged, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from r3_rl.observe.charts import WIDE, Axis, Curve, line_chart
from r3_rl.observe.course import BEST, Course
from r3_rl.observe.evaluation import words_of
from r3_rl.observe.history import Series, series
from r3_rl.observe.marks import stacked_bar
from r3_rl.observe.markup import Html, element
from r3_rl.observe.metrics import find_metric

Rows = Sequence[Mapping[str, Any]]

CHARTS: tuple[tuple[str, tuple[tuple[str, str], ...], Axis, str], ...] = (
    ("Score", (("refine/draft_score", "draft"), ("refine/final_score", "final")), Axis(), ""),
    ("Gain of a refinement", (("refine/gain_mean", "gain"),), Axis(marks=(0.0,)), "Read it beside the draft score."),
    (
        "What critiques do",
        (("refine/frac_stopped", "stopped"), ("refine/frac_improved", "improved"), ("refine/frac_regressed", "worse")),
        Axis(percent=True),
        "",
    ),
    ("Reward", (("reward", "reward"), ("reward_std", "std in group")), Axis(), ""),
    ("KL from the reference, text", (("kl", "k3 estimate"),), Axis(marks=(0.0,)), ""),
    ("KL from the reference, image", (("image/kl", "per step"),), Axis(marks=(0.0,)), ""),
    (
        "Importance ratio on the first pass",
        (("ratio/text_deviation", "text"), ("ratio/image_deviation", "image")),
        Axis(log=True),
        "Largest |ratio - 1|; dashed: what rounding explains.",
    ),
    (
        "Gradient agreement",
        (("grad/cosine", "cosine"),),
        Axis(marks=(0.0,)),
        "Understanding against generation; below 0 they conflict.",
    ),
    (
        "Lost signal",
        (("frac_reward_zero_std", "equal groups"), ("scores/missing_fraction", "missing scores")),
        Axis(percent=True),
        "Groups without spread and scores that failed.",
    ),
)  # fmt: skip


def curves_section(rows: Rows, ratio_tolerance: float) -> list[Html]:
    """Every metric of a run as a curve: the telling ones in sight, all others folded."""
    if not rows:
        return [element("p", "No metrics.jsonl, so there are no curves.", class_="missing")]
    note = (
        "Pale: as logged. Strong: running mean over about a tenth of the run; its last value stands in the legend. "
        "Drag over a chart to see those steps larger, double-click to see all."
    )
    cards = []
    for title, keys, axis, hint in CHARTS:
        curves = [Curve(label=label, series=series(rows, key)) for key, label in keys]
        limit = replace(axis, marks=(ratio_tolerance,)) if axis.log else axis
        cards.append(line_chart(title, curves, axis=limit, note=hint))
    shown = {name for _, names, _, _ in CHARTS for name, _ in names}
    rest = [
        name
        for name in _names(rows)
        if name not in shown and not name.startswith(("rewards/", "weighted_rewards/", "eval_rewards/", "time/"))
    ]
    parts = [element("p", note, class_="note"), element("div", cards, class_="charts")]
    if rest:
        more = [_single_chart(rows, name) for name in rest]
        title = element("summary", f"All other metrics ({len(rest)})")
        parts.append(element("details", title, element("div", more, class_="charts"), class_="fold"))
    return parts


def _single_chart(rows: Rows, name: str) -> Html:
    metric = find_metric(name)
    axis = Axis(percent=metric is not None and metric.unit == "share")
    hint = metric.meaning if metric else "Logged by a scorer."
    return line_chart(name, [Curve(label="", series=series(rows, name))], axis=axis, note=hint)


def scorers_section(rows: Rows) -> list[Html]:
    """Training scorers and held-out scorers side by side."""
    cards = []
    for prefix, title, hint in (
        ("rewards", "Training scorers", "Raw scores, before weights."),
        ("eval_rewards", "Held-out scorers", "Never part of the reward: they show whether the reward is being gamed."),
    ):
        names = [name for name in _names(rows) if name.startswith(f"{prefix}/") and name.endswith("/mean")]
        curves = [Curve(label=name.split("/")[1], series=series(rows, name)) for name in names]
        hint = hint if curves else f"{hint} The recipe names none under `{prefix}`, or none was logged."
        cards.append(line_chart(title, curves, note=hint, width=WIDE))
    return [element("div", cards, class_="charts pair")]


def course_chart(course: Course) -> Html:
    """The metric that the best adapter is kept by, with its intervals; the best step is ringed."""
    points = [*([(0, course.base)] if course.base else []), *((r.step, r.value) for r in course.readings)]
    low, high = (np.array([getattr(value, end) for _, value in points]) for end in ("low", "high"))
    steps, values = np.array([step for step, _ in points], np.int64), np.array([value.mean for _, value in points])
    best = course.best
    note = "No step has a value yet."
    if best is not None:
        way = "Higher" if course.metric.wanted == "more" else "Lower"
        value = course.said(best.value)
        note = f"Ringed: step {best.step}, {value}, kept in {BEST}/. {way} is better. Step 0 is the base."
    curve = Curve(
        label=course.metric.name,
        series=Series(steps=steps, values=values),
        bounds=(low, high),
        ringed=None if best is None else best.step,
    )
    axis = Axis(percent=course.metric.unit in ("share", "change"))
    return line_chart(course.metric.words, [curve], axis=axis, note=note, width=WIDE)


def time_section(rows: Rows) -> list[Html]:
    """Seconds by stage, and seconds per step over the run."""
    names = [name for name in _names(rows) if name.startswith("time/") and name != "time/step_s"]
    if not names:
        return [element("p", "No seconds by stage were logged.", class_="missing")]
    # Per logged step, so that a stage that runs in every other step counts half.
    stages = [(words_of(name[5:-2]), float(series(rows, name).values.sum()) / len(rows)) for name in names]
    stages = sorted((stage for stage in stages if stage[1] > 0), key=lambda stage: -stage[1])
    bar = stacked_bar(stages) if stages else element("p", "Every stage took 0 s.", class_="missing")
    card = element("section", element("h3", "Mean seconds of a step by stage"), bar, class_="chart")
    curve = [Curve(label="step", series=series(rows, "time/step_s"))]
    return [element("div", card, line_chart("Seconds per step", curve, width=WIDE), class_="charts pair")]


def _names(rows: Rows) -> list[str]:
    """Metrics that hold a number somewhere, in the order in which they first came."""
    return list(
        dict.fromkeys(
            name for row in rows for name, value in row.items() if name != "step" and isinstance(value, int | float)
        )
    )
