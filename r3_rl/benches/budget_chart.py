"""Right images against the number of images: the loop, and drawing again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from r3_rl.benches.results import BenchResult
from r3_rl.observe.charts import NUM_COLOURS
from r3_rl.observe.markup import Html, element

WIDTH, HEIGHT = 500, 220
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 34
Points = Mapping[int, float]
"""Share of right images by number of rounds."""


def budget_charts(results: Sequence[BenchResult], models: Sequence[str]) -> Html | None:
    """Return a card for each drawing bench and decoding; None if nothing was drawn in more than one budget."""
    cards = []
    for result in results:
        if not any(row.figure.headline for row in result.rows):
            continue
        for decoding in result.bench.decodings:
            lines = {model: _points(result, decoding, model, r"round_(\d+)") for model in models}
            again = {model: _points(result, decoding, model, r"best_own_critic_(\d+)") for model in models}
            if any(len(points) > 1 for points in lines.values()):
                title = f"{result.bench.title}, {decoding}"
                cards.append(budget_card(title, lines, again))
    return element("div", cards, class_="charts pair") if cards else None


def _points(result: BenchResult, decoding: str, model: str, pattern: str) -> Points:
    """Shares by number of rounds, the draft at 0."""
    found = {}
    for row in result.rows:
        named = re.fullmatch(pattern, row.figure.name)
        cells = row.cells.get(decoding)
        shown = cells.models.get(model) if cells else None
        if shown and (named or row.figure.name == "draft"):
            found[int(named[1]) if named else 0] = shown.over_items.mean
    return found


def budget_card(title: str, lines: Mapping[str, Points], again: Mapping[str, Points]) -> Html:
    """One chart.

    Args:
        title: heading of the card.
        lines: of each model, shares of right images after each number of rounds.
        again: the same of drawing again so often, the own critic choosing; drawn dashed.
    """
    legend = []
    for number, (model, points) in enumerate(lines.items()):
        colour = f"c{number % NUM_COLOURS + 1}"
        last = f"{100 * points[max(points)]:.0f} %" if points else "–"
        legend.append(element("span", element("i", class_=f"swatch {colour}"), model, " ", element("b", last)))
    svg = _svg(title, lines, again)
    return element(
        "section", element("h3", title), element("div", legend, class_="legend"),
        element("div", svg, class_="plot"), class_="chart",
    )  # fmt: skip


def _svg(title: str, lines: Mapping[str, Points], again: Mapping[str, Points]) -> Html:
    most = max(max(points, default=0) for points in lines.values())
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        y = _y(tick)
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="rule"))
        parts.append(element("text", f"{100 * tick:.0f} %", x=LEFT - 6, y=y + 3.5, class_="end"))
    rounds = sorted({number for points in lines.values() for number in points})
    for number in rounds:
        words = "1 image" if number == 0 else str(number + 1)
        parts.append(element("text", words, x=_x(number, most) - 4, y=HEIGHT - 12))
    for number, (model, points) in enumerate(lines.items()):
        colour = f"c{number % NUM_COLOURS + 1}"
        if len(again[model]) > 1:
            parts.append(_line(again[model], most, f"raw {colour}", stroke_dasharray="4 3", style="opacity:.75"))
        parts.append(_line(points, most, f"line {colour}"))
        parts += [
            element("circle", cx=_x(k, most), cy=_y(v), r=3, class_=f"fill {colour}") for k, v in sorted(points.items())
        ]
    return element(
        "svg", parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", class_="wide", aria_label=f"{title}: right images"
    )


def _line(points: Points, most: int, class_: str, **attributes: str) -> Html:
    path = " ".join(f"{_x(number, most):g},{_y(value):g}" for number, value in sorted(points.items()))
    return element("polyline", points=path, class_=class_, **attributes)


def _x(number: int, most: int) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * number / max(1, most), 1)


def _y(share: float) -> float:
    return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - share), 1)
