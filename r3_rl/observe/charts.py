"""Curves as inline SVG: small, sharp, coloured by the page's own style sheet."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from r3_rl.observe.history import Series
from r3_rl.observe.markup import Html, element

WIDTH, WIDE, HEIGHT = 360, 560, 176
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 10, 22
MAX_POINTS = 400
"""Longer curves are averaged into this many points: a screen shows no more, and the page stays small."""
SMOOTH_FROM = 12
"""Shorter curves are drawn as they are."""
NUM_COLOURS = 7
RING = 5
"""Radius of the ring around a marked value."""
LOG_FLOOR = 1e-9


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a chart."""

    label: str
    series: Series
    bounds: tuple[np.ndarray, np.ndarray] | None = None
    """float64 [N] twice: where the interval of each value begins and ends; None draws none."""
    ringed: int | None = None
    """A step whose value is marked."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """How values become heights."""

    percent: bool = False
    """Print values as per cent."""
    log: bool = False
    """Decades; values below 1e-9 are drawn there."""
    marks: tuple[float, ...] = ()
    """Values that get a dashed rule and are always in sight, such as 0 for a gain."""


def line_chart(
    title: str, curves: Sequence[Curve], *, axis: Axis | None = None, note: str = "", width: int = WIDTH
) -> Html:
    """A card with curves over steps: the raw values pale, a running mean strong, the last mean in the legend.

    Args:
        title: heading of the card.
        curves: those without values are named as missing.
        axis: how values become heights.
        note: one line below the title.
        width: of the drawing in its own units, near the pixels it will fill, so that its text keeps its size.
    """
    axis = axis or Axis()
    drawn = [
        this if this.bounds else Curve(label=this.label, series=_thin(this.series), ringed=this.ringed)
        for this in curves
        if len(this.series)
    ]
    missing = [this.label for this in curves if not len(this.series)]
    body: list[Html] = []
    if drawn:
        body = [_legend(drawn, axis), element("div", _svg(title, drawn, axis, width), _tip(), class_="plot")]
    else:
        body = [element("p", "Not measured in this run.", class_="missing")]
    if drawn and missing:
        body.append(element("p", f"Not measured: {', '.join(missing)}.", class_="missing"))
    heading = element("h3", title)
    return element("section", heading, element("p", note, class_="note") if note else None, body, class_="chart")


def smooth(values: np.ndarray) -> np.ndarray:
    """Exponential running mean that starts unbiased, over about a tenth of the curve.

    m_k = sum_j a (1 - a)^(k - j) x_j / sum_j a (1 - a)^(k - j), a = 2 / (w + 1), w = max(5, n / 10)

    >>> smooth(np.array([1.0, 1.0, 1.0])).round(6).tolist()
    [1.0, 1.0, 1.0]
    """
    keep = 1 - 2 / (max(5.0, values.size / 10) + 1)
    total, weight, means = 0.0, 0.0, np.empty(values.size)
    for index, value in enumerate(values):
        total, weight = keep * total + value, keep * weight + 1
        means[index] = total / weight
    return means


def number(value: float, percent: bool = False) -> str:
    """A number in few characters.

    >>> number(0.5, percent=True), number(0.1234), number(12345.6), number(2e-6), number(0)
    ('50 %', '0.123', '12,346', '2e-06', '0')
    """
    if percent:
        if 0 < abs(value) < 0.001:
            return "< 0.1 %" if value > 0 else "> -0.1 %"
        return f"{100 * value:.0f} %" if abs(value) >= 0.1 or value == 0 else f"{100 * value:.1f} %"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _thin(found: Series) -> Series:
    if len(found) <= MAX_POINTS:
        return found
    bins = np.array_split(np.arange(len(found)), MAX_POINTS)
    return Series(
        steps=np.array([found.steps[these[-1]] for these in bins]),
        values=np.array([found.values[these].mean() for these in bins]),
    )


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """Where steps and values lie in the drawing."""

    steps: tuple[int, int]
    values: tuple[float, float]
    log: bool
    width: int

    def x(self, step: float) -> float:
        first, last = self.steps
        return round(LEFT + (self.width - LEFT - RIGHT) * (step - first) / max(1, last - first), 1)

    def y(self, value: float) -> float:
        low, high = self.values
        if self.log:
            value, low, high = (math.log10(max(v, LOG_FLOOR)) for v in (value, low, high))
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low), 1)


def _scale(curves: Sequence[Curve], axis: Axis, width: int) -> tuple[_Scale, list[float]]:
    steps = (min(int(c.series.steps[0]) for c in curves), max(int(c.series.steps[-1]) for c in curves))
    bounds = [bound for c in curves for bound in c.bounds or ()]
    values = np.concatenate([c.series.values for c in curves] + bounds + [np.array(axis.marks)])
    if axis.log:
        bottom = math.floor(math.log10(max(LOG_FLOOR, float(values.min()))))
        top = max(bottom + 1, math.ceil(math.log10(max(LOG_FLOOR, float(values.max())))))
        ticks = [10.0**power for power in range(bottom, top + 1, max(1, (top - bottom) // 3))]
        return _Scale(steps=steps, values=(10.0**bottom, 10.0**top), log=True, width=width), ticks
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-12:
        low, high = low - max(0.5 * abs(low), 1e-3), high + max(0.5 * abs(high), 1e-3)
    ticks = _ticks(low, high)
    return _Scale(steps=steps, values=(ticks[0], ticks[-1]), log=False, width=width), ticks


def _ticks(low: float, high: float) -> list[float]:
    """Round values at equal distances, the first at or below `low`, the last at or above `high`."""
    rough = (high - low) / 4
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough)
    return [round(step * k, 12) for k in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _svg(title: str, curves: Sequence[Curve], axis: Axis, width: int) -> Html:
    scale, ticks = _scale(curves, axis, width)
    parts = []
    for tick in ticks:
        y = scale.y(tick)
        parts.append(element("line", x1=LEFT, x2=width - RIGHT, y1=y, y2=y, class_="rule"))
        text = f"{tick:.0e}".replace("e-0", "e-") if axis.log else number(tick, axis.percent)
        parts.append(element("text", text, x=LEFT - 6, y=y + 3.5, class_="label end"))
    for mark in axis.marks:
        y = scale.y(mark)
        parts.append(element("line", x1=LEFT, x2=width - RIGHT, y1=y, y2=y, class_="dashed"))
    first, last = scale.steps
    parts.append(element("text", f"step {first}", x=LEFT, y=HEIGHT - 6, class_="label step"))
    if last > first:
        parts.append(element("text", f"{last:,}", x=width - RIGHT, y=HEIGHT - 6, class_="label step end"))
    parts.append(_plot(curves, scale))
    inside = {"y": TOP, "height": HEIGHT - TOP - BOTTOM}
    parts.append(element("rect", x=LEFT, width=0, **inside, class_="band"))
    ends = {"x1": 0, "x2": 0, "y1": TOP, "y2": HEIGHT - BOTTOM}
    where = {"data_left": LEFT, "data_width": width - LEFT - RIGHT}
    parts.append(element("line", **ends, **where, class_="guide", visibility="hidden"))
    return element(
        "svg",
        parts,
        viewBox=f"0 0 {width} {HEIGHT}",
        role="img",
        class_="wide" if width > WIDTH else None,
        aria_label=f"{title}, steps {first} to {last}",
        data_chart=_hover_data(curves, scale, axis),
    )


def _plot(curves: Sequence[Curve], scale: _Scale) -> Html:
    """The curves in a drawing of their own, which the page's script shows a part of."""
    lines: list[Html] = []
    for index, curve in enumerate(curves):
        lines += _lines(curve, index, scale)
        lines += _marks(curve, f"c{index % NUM_COLOURS + 1}", scale)
    x, width = LEFT - RING - 1, scale.width - LEFT - RIGHT + 2 * (RING + 1)
    box = {"x": x, "y": 0, "width": width, "height": HEIGHT}
    return element("svg", lines, **box, viewBox=f"{x} 0 {width} {HEIGHT}", preserveAspectRatio="none")


def _lines(curve: Curve, index: int, scale: _Scale) -> list[Html]:
    colour = f"c{index % NUM_COLOURS + 1}"
    found = curve.series
    raw = _points(found.steps, found.values, scale)
    if len(found) == 1:
        x, y = raw.split(",")
        return [element("ellipse", cx=x, cy=y, rx=3, ry=3, class_=f"fill {colour}")]
    if len(found) < SMOOTH_FROM:
        return [element("polyline", points=raw, class_=f"line {colour}")]
    mean = _points(found.steps, smooth(found.values), scale)
    return [
        element("polyline", points=raw, class_=f"raw {colour}"),
        element("polyline", points=mean, class_=f"line {colour}"),
    ]


def _marks(curve: Curve, colour: str, scale: _Scale) -> list[Html]:
    """Intervals as whiskers, and the ring."""
    parts = []
    for step, low, high in zip(curve.series.steps, *(curve.bounds or ((), ())), strict=bool(curve.bounds)):
        x = scale.x(step)
        parts.append(element("line", x1=x, x2=x, y1=scale.y(low), y2=scale.y(high), class_=f"raw {colour}"))
    for step, value in zip(curve.series.steps, curve.series.values, strict=True):
        if step == curve.ringed:
            at = {"cx": scale.x(step), "cy": scale.y(value)}
            parts.append(element("ellipse", **at, rx=RING, ry=RING, class_=f"line ring {colour}"))
    return parts


def _points(steps: np.ndarray, values: np.ndarray, scale: _Scale) -> str:
    return " ".join(f"{scale.x(step):g},{scale.y(value):g}" for step, value in zip(steps, values, strict=True))


def _hover_data(curves: Sequence[Curve], scale: _Scale, axis: Axis) -> str:
    lines = [
        {
            "label": curve.label,
            "steps": curve.series.steps.tolist(),
            "x": [scale.x(step) for step in curve.series.steps],
            "text": [number(value, axis.percent) for value in curve.series.values],
        }
        for curve in curves
    ]
    return json.dumps(lines, separators=(",", ":"))


def _legend(curves: Sequence[Curve], axis: Axis) -> Html:
    items = []
    for index, curve in enumerate(curves):
        values = curve.series.values
        last = smooth(values)[-1] if values.size >= SMOOTH_FROM else values[-1]
        swatch = element("i", class_=f"swatch c{index % NUM_COLOURS + 1}")
        items.append(element("span", swatch, curve.label, " ", element("b", number(float(last), axis.percent))))
    return element("div", items, class_="legend")


def _tip() -> Html:
    return element("div", class_="tip", hidden=True)
