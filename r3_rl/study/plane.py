"""Understanding against generation: where every arm ends, and where the base was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from r3_rl.observe.charts import NUM_COLOURS
from r3_rl.observe.markup import Html, element
from r3_rl.study.figures import Effect

WIDTH, HEIGHT = 360, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 40
MARGIN = 0.02


@dataclass(frozen=True, kw_only=True)
class Point:
    """An arm in the plane; shares in [0, 1]."""

    label: str
    understanding: Effect
    generation: Effect


def plane(title: str, across: str, up: str, base: Point | None, points: Sequence[Point]) -> Html:
    """A card with a cross for each arm: its mean, and its interval over the seeds (over the items with one seed).

    Args:
        title: heading of the card.
        across, up: what the axes show.
        base: before training; arrows begin there.
        points: after training, in the order of the legend.
    """
    scale = _Scale.around([*([base] if base else []), *points])
    parts = _frame(scale, across, up)
    if base:
        x, y = scale.x(base.understanding.mean), scale.y(base.generation.mean)
        for point in points:
            end = scale.x(point.understanding.mean), scale.y(point.generation.mean)
            parts.append(element("line", x1=x, y1=y, x2=end[0], y2=end[1], class_="dashed", style="opacity:.45"))
        parts.append(element("circle", cx=x, cy=y, r=4, style="fill:var(--past)"))
        parts.append(_beside("base", x, y + 12))
    for index, point in enumerate(points):
        parts += _cross(point, index, scale)
    legend = [
        element("span", element("i", class_=f"swatch c{index % NUM_COLOURS + 1}"), f"{index + 1} {point.label}")
        for index, point in enumerate(points)
    ]
    drawing = element("svg", parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"{title}: {across}, {up}")
    return element(
        "section", element("h3", title), element("div", legend, class_="legend"),
        element("div", drawing, class_="plot"), class_="chart",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """Where shares lie in the drawing."""

    across: tuple[float, float]
    up: tuple[float, float]

    @classmethod
    def around(cls, points: Sequence[Point]) -> _Scale:
        return cls(
            across=_range([point.understanding for point in points]), up=_range([point.generation for point in points])
        )

    def x(self, value: float) -> float:
        low, high = self.across
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low), 1)

    def y(self, value: float) -> float:
        low, high = self.up
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low), 1)


def _range(effects: Sequence[Effect]) -> tuple[float, float]:
    bounds = [bound for effect in effects for bound in _bounds(effect)]
    return max(0.0, min(bounds) - MARGIN), min(1.0, max(bounds) + MARGIN)


def _bounds(effect: Effect) -> tuple[float, float]:
    interval = effect.over_seeds or effect.over_items
    if interval is None:
        return effect.mean, effect.mean
    return min(max(interval.low, 0.0), effect.mean), max(min(interval.high, 1.0), effect.mean)


def _frame(scale: _Scale, across: str, up: str) -> list[Html]:
    parts = []
    for fraction in (0.0, 0.5, 1.0):
        value = scale.across[0] + fraction * (scale.across[1] - scale.across[0])
        x = scale.x(value)
        parts.append(element("line", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM, class_="rule"))
        anchor = ("start", "middle", "end")[round(2 * fraction)]
        parts.append(element("text", f"{100 * value:.0f} %", x=x, y=HEIGHT - BOTTOM + 14, text_anchor=anchor))
        value = scale.up[0] + fraction * (scale.up[1] - scale.up[0])
        y = scale.y(value)
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="rule"))
        parts.append(element("text", f"{100 * value:.0f} %", x=LEFT - 5, y=y + 3.5, class_="end"))
    parts.append(element("text", across, x=WIDTH - RIGHT, y=HEIGHT - 8, class_="end"))
    parts.append(element("text", up, x=LEFT + 4, y=TOP + 9))
    return parts


def _cross(point: Point, index: int, scale: _Scale) -> list[Html]:
    colour = f"c{index % NUM_COLOURS + 1}"
    x, y = scale.x(point.understanding.mean), scale.y(point.generation.mean)
    left, right = (scale.x(bound) for bound in _bounds(point.understanding))
    bottom, top = (scale.y(bound) for bound in _bounds(point.generation))
    return [
        element("line", x1=left, x2=right, y1=y, y2=y, class_=f"line {colour}", style="stroke-width:1"),
        element("line", x1=x, x2=x, y1=bottom, y2=top, class_=f"line {colour}", style="stroke-width:1"),
        element("circle", cx=x, cy=y, r=4, class_=f"fill {colour}"),
        _beside(str(index + 1), x, y - 5),
    ]


def _beside(words: str, x: float, y: float) -> Html:
    """A word right of a point; left of one at the right edge, where it would be cut off."""
    at_edge = x > WIDTH - RIGHT - 24
    return element("text", words, x=x - 6 if at_edge else x + 6, y=y, class_="end" if at_edge else None)
