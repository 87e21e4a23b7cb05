"""Small drawings between the words of a page: two intervals on a line, a bar in parts."""

from __future__ import annotations

from collections.abc import Sequence

from r3_rl.observe.charts import NUM_COLOURS
from r3_rl.observe.markup import Html, element
from r3_rl.observe.statistics import Interval


def interval_mark(before: Interval | None, after: Interval | None) -> Html:
    """Two means with their intervals on a line from 0 to 1: before above, after below."""
    width, height, inset = 150, 26, 5
    parts = [
        element("line", x1=x, x2=x, y1=2, y2=height - 2, class_="tick")
        for x in (inset, width / 2, width - inset)
    ]  # fmt: skip
    for interval, y, kind in ((before, 8, "before"), (after, 18, "after")):
        if interval is None:
            continue
        low, mean, high = (
            round(inset + (width - 2 * inset) * min(1.0, max(0.0, value)), 1)
            for value in (interval.low, interval.mean, interval.high)
        )
        parts.append(element("line", x1=low, x2=high, y1=y, y2=y, class_=f"whisker {kind}"))
        parts.append(element("circle", cx=mean, cy=y, r=3.5, class_=kind))
    return element("svg", parts, viewBox=f"0 0 {width} {height}", class_="mark", aria_hidden="true")


def stacked_bar(parts: Sequence[tuple[str, float]]) -> Html:
    """One bar split by share, with a legend that says the value and the share of each part.

    Args:
        parts: label and value (seconds, at least 0) of each part.
    """
    total = sum(value for _, value in parts)
    assert total > 0
    x, bars, legend = 0.0, [], []
    for number, (label, value) in enumerate(parts):
        width = 100 * value / total
        colour = f"c{number % NUM_COLOURS + 1}"
        bars.append(element("rect", x=round(x, 2), y=0, width=round(width, 2), height=10, class_=f"fill {colour}"))
        x += width
        swatch = element("i", class_=f"swatch {colour}")
        cells = (element("td", swatch, label), element("td", f"{value:.2f} s"), element("td", f"{width:.0f} %"))
        legend.append(element("tr", cells))
    svg = element("svg", bars, viewBox="0 0 100 10", preserveAspectRatio="none", class_="stack", aria_hidden="true")
    return element("div", svg, element("table", legend, class_="legend-table"), class_="stacked")
