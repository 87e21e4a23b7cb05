"""What the benches of a recipe's section `eval` found, in the report and on the card: `eval/table.json` of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from r3_rl.observe.markup import Html, element
from r3_rl.observe.statistics import Interval

FOLDER = "eval"
"""Of a run, with tables, samples, images and a page of their own."""
_BEFORE, _AFTER = "base", "trained"


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """A headline figure of a bench, in its first decoding."""

    bench: str
    """As people say it."""
    label: str
    hint: str
    unit: str
    """`share`, `change`, `number` or `distance`."""
    wanted: str
    """`more`, `less` or `neither`."""
    decoding: str
    before: Interval
    after: Interval
    change: Interval

    def said(self, interval: Interval, *, signed: bool = False) -> str:
        """A figure in its unit with its interval."""
        return said(interval, self.unit, signed=signed)


def said(interval: Interval, unit: str, *, signed: bool = False) -> str:
    """Return a figure in its unit with its interval; a distance has none.

    Args:
        interval: value and bounds.
        unit: `share`, `change`, `number` or `distance`.
        signed: whether it is a change.

    >>> interval = Interval(mean=0.5, low=0.25, high=0.75, count=4)
    >>> said(interval, "share"), said(interval, "share", signed=True)
    ('50.0 % (25.0 to 75.0)', '+50.0 (+25.0 to +75.0)')
    """
    share = unit in ("share", "change")
    scale, digits = (100.0, 1) if share else (1.0, 3)
    sign = "+" if signed or unit == "change" else ""
    mean, low, high = (f"{scale * value:{sign}.{digits}f}" for value in (interval.mean, interval.low, interval.high))
    percent = " %" if share and not sign else ""
    return f"{mean}{percent}" if unit == "distance" else f"{mean}{percent} ({low} to {high})"


def rows_of(table: Mapping[str, Any]) -> list[BenchRow]:
    """Return the headline figures of a `table.json` that were measured before and after.

    Raises KeyError, TypeError or AttributeError for a table of another shape.
    """
    return [row for bench in table.get("benches", ()) for row in _rows(bench)]


def _rows(bench: Mapping[str, Any]) -> Iterator[BenchRow]:
    for figure in bench["figures"]:
        decoding, cells = next(iter(figure["decodings"].items()))
        models, change = cells["models"], cells["changes"].get(f"{_AFTER} - {_BEFORE}")
        if figure["headline"] and change and _BEFORE in models and _AFTER in models:
            yield BenchRow(
                bench=bench["title"],
                **{name: figure[name] for name in ("label", "hint", "unit", "wanted")},
                decoding=decoding,
                before=Interval.from_dict(models[_BEFORE]),
                after=Interval.from_dict(models[_AFTER]),
                change=Interval.from_dict(change),
            )


def benches_table(rows: Sequence[BenchRow]) -> Html:
    """The figures as a table of the report."""
    words = ("before", "after", "change", "n")
    head = element(
        "tr", element("th", "", scope="col"), [element("th", word, scope="col", class_="number") for word in words]
    )
    body: list[Html] = []
    for bench in dict.fromkeys(row.bench for row in rows):
        body.append(element("tr", element("th", bench, colspan="5", scope="colgroup"), class_="group"))
        body += [_line(row) for row in rows if row.bench == bench]
    return element("table", element("thead", head), element("tbody", body), class_="results")


def _line(row: BenchRow) -> Html:
    better = row.change.mean > 0 if row.wanted == "more" else row.change.mean < 0
    sure = row.change.excludes_zero and row.wanted != "neither"
    hint = ", ".join(filter(None, [row.hint, row.decoding]))
    return element(
        "tr",
        element("th", row.label, element("small", hint), scope="row"),
        element("td", row.said(row.before), class_="number"),
        element("td", row.said(row.after), class_="number"),
        element(
            "td",
            element(
                "b", row.said(row.change, signed=True), class_="unsure" if not sure else "up" if better else "down"
            ),
            class_="number",
        ),
        element("td", f"{row.before.count:,}", class_="number count-cell"),
    )


def markdown_table(rows: Sequence[BenchRow], escape: Callable[[str], str]) -> str:
    """The figures as a table of the model card; `escape` makes a text one that Markdown shows as it is."""
    lines = ["| bench | | before | after | change | n |", "|---|---|---|---|---|---|"]
    for row in rows:
        label = f"{row.label} ({', '.join(filter(None, [row.hint, row.decoding]))})"
        cells = [row.bench, label, row.said(row.before), row.said(row.after), row.said(row.change, signed=True)]
        lines.append(f"| {' | '.join([*map(escape, cells), str(row.before.count)])} |")
    return "\n".join(lines)
