"""A study as one offline page: understanding against generation, the tables, edit budgets, gradients, costs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from r3_rl.benches.budget_chart import budget_card
from r3_rl.observe.charts import NUM_COLOURS, Axis, Curve, line_chart
from r3_rl.observe.markup import Child, Html, element
from r3_rl.observe.measures import GREEDY
from r3_rl.observe.page import page
from r3_rl.observe.recorder import write_document
from r3_rl.study.figures import ArmRuns
from r3_rl.study.plane import Point, plane
from r3_rl.study.tables import COSTS, Cell, Report, Table, costs_of

PAGE = "study.html"
ACROSS = {"ita_fixed": "ITA, fixed images", "listing": "exact listing", "questions": "questions answered"}
UP = {"final": "right at the end", "draft": "draft right"}
CURVES = {
    "grad/cosine": "Cosine of the gradients of texts and images",
    "entropy": "Entropy of the sampled texts, nats a token",
    "refine/draft_score": "Score of the drafts, of training prompts",
    "refine/gain_mean": "Gain of a refinement, of training prompts",
}


def write_page(folder: Path, report: Report) -> Path:
    """Write `study.html` into the study's folder and return its path."""
    arms = report.arms
    note = (
        "Where each arm ends; the base is grey. Greedy texts, held-out prompts and images. Brackets: Student's 95 % "
        "interval over the seeds; over the items where there is one seed."
    )
    changes = (
        "After - before, in points (entropies: nats; roughness: levels of 255). Bold: neither the interval over the "
        "seeds nor the one over the items holds 0."
    )
    sections = [
        element(
            "header", element("p", "r3-rl study", class_="eyebrow"), element("h1", report.title),
            element("p", report.lead),
        ),
        _section("Understanding against generation", note, _planes(arms)),
        _section("Change by training", changes, _table(report.changes)),
    ]  # fmt: skip
    if report.compared.heads:
        paired = "After training, paired: the same seeds and, where a figure has them, the same items."
        sections.append(_section(f"Each arm minus {report.against}", paired, _table(report.compared)))
    if cards := _budgets(arms):
        budgets = (
            "Right images after training against the number of images: the loop looks at its first image and redraws "
            "it; the dashed line draws again instead, and its own critic picks one."
        )
        sections.append(_section("Edit budgets", budgets, element("div", cards, class_="charts pair")))
    sections.append(_section("Over the steps", "Means over the seeds.", _curves(arms)))
    sections.append(
        _section(
            "Cost of a run", "Averaged over the seeds. The first runs of a study also measure the base.", _costs(arms)
        )
    )
    footer = element("footer", "Made by r3-rl. The same tables as text: study.md; every number: figures.jsonl.")
    write_document(folder / PAGE, str(page(f"{report.title} - r3-rl study", [*sections, footer])))
    return folder / PAGE


def _section(heading: str, note: str, content: Child) -> Html:
    return element("section", element("h2", heading), element("p", note, class_="note"), content)


def _planes(arms: Sequence[ArmRuns]) -> Html:
    cards = []
    for up, up_words in UP.items():
        for across, across_words in ACROSS.items():
            found = [(arm, arm.level(across + GREEDY, "after"), arm.level(up + GREEDY, "after")) for arm in arms]
            points = [Point(label=arm.arm.label, understanding=x, generation=y) for arm, x, y in found if x and y]
            if points:
                base = _base(arms[0], across + GREEDY, up + GREEDY)
                cards.append(plane(f"{up_words.capitalize()}, {across_words}", across_words, up_words, base, points))
    return element("div", cards, class_="charts")


def _base(arm: ArmRuns, across: str, up: str) -> Point | None:
    x, y = arm.level(across, "before"), arm.level(up, "before")
    return Point(label="base", understanding=x, generation=y) if x and y else None


def _table(table: Table) -> Html:
    lines, group = [], ""
    for row, cells in table.lines:
        if row.group != group:
            group = row.group
            heading = element("th", element("b", group), colspan=1 + len(cells), scope="colgroup")
            lines.append(element("tr", heading))
        lines.append(element("tr", element("th", row.label, scope="row"), map(_cell, cells)))
    return _box(["", *table.heads], lines)


def _cell(cell: Cell) -> Html:
    title = f"by seed: {cell.by_seed}" if cell.by_seed else None
    return element("td", element("b", cell.text) if cell.clear else cell.text, title=title)


def _box(heads: Sequence[str], lines: Sequence[Html]) -> Html:
    head = element("thead", element("tr", [element("th", words, scope="col") for words in heads]))
    return element("div", element("table", head, element("tbody", lines), class_="heat"), class_="box")


def _budgets(arms: Sequence[ArmRuns]) -> list[Html]:
    cards = []
    for suffix, words in ((GREEDY, "greedy"), ("", "sampled")):
        for number, part in enumerate(_parts(arms)):
            lines = {arm.arm.label: _points(arm, rf"draft{suffix}|round_(\d+){suffix}|final{suffix}") for arm in part}
            again = {arm.arm.label: {} if suffix else _points(arm, r"draft|best_of_(\d+)_own_critic") for arm in part}
            if any(len(points) > 1 for points in lines.values()):
                cards.append(budget_card(f"Right images, {words}{_numbered(arms, number)}", lines, again))
    return cards


def _parts(arms: Sequence[ArmRuns]) -> list[Sequence[ArmRuns]]:
    """As many arms in a chart as there are colours."""
    return [arms[start : start + NUM_COLOURS] for start in range(0, len(arms), NUM_COLOURS)]


def _numbered(arms: Sequence[ArmRuns], number: int) -> str:
    return f" ({number + 1} of {len(_parts(arms))})" if len(arms) > NUM_COLOURS else ""


def _points(arm: ArmRuns, pattern: str) -> dict[int, float]:
    """Shares of right images by the number of images after the first."""
    names = list(dict.fromkeys(name for run in arm.runs.values() for name in run.evaluation.after))
    found: dict[int, float] = {}
    rounds = [int(match[1]) for name in names if (match := re.fullmatch(r"round_(\d+)", name))]
    for name in names:
        match = re.fullmatch(pattern, name)
        effect = arm.level(name, "after") if match else None
        if match is None or effect is None:
            continue
        if name.startswith("final"):
            place = max(rounds, default=0) + 1
        elif name.startswith("best_of"):
            place = int(match[1]) - 1
        else:
            place = int(match[1] or 0)
        found[place] = effect.mean
    return found


def _curves(arms: Sequence[ArmRuns]) -> Html:
    cards = []
    for metric, title in CURVES.items():
        for number, part in enumerate(_parts(arms)):
            curves = [Curve(label=arm.arm.label, series=arm.curve(metric)) for arm in part]
            known = [curve for curve in curves if len(curve.series)]
            if known:
                axis = Axis(marks=(0.0,)) if metric in ("grad/cosine", "refine/gain_mean") else Axis()
                cards.append(line_chart(title + _numbered(arms, number), known, axis=axis))
    return element("div", cards, class_="charts pair")


def _costs(arms: Sequence[ArmRuns]) -> Html:
    lines = [
        element("tr", element("th", arm.arm.label, scope="row"), [element("td", cell) for cell in costs_of(arm)])
        for arm in arms
    ]
    return _box(["arm", *COSTS], lines)
