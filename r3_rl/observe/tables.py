"""The before / after table of the report, and its headline figures: greedy texts first, sampled ones next to them."""

from __future__ import annotations

from collections.abc import Sequence

from r3_rl.observe.evaluation import Evaluation, Figure, Row, grouped_rows
from r3_rl.observe.marks import interval_mark
from r3_rl.observe.markup import Html, element
from r3_rl.observe.measures import HEADLINE
from r3_rl.observe.statistics import Interval
from r3_rl.observe.text_table import headline_lines

OLD_HEADLINE = ("draft", "final", "wrong_drafts_repaired", "right_drafts_kept")
"""Of runs that were measured with sampled texts only."""


def headline(evaluation: Evaluation) -> Html:
    """Up to four large figures, greedy ones if there are any, and a line with the sampled ones."""
    tiles = [_tile(row, row.greedy, "greedy") for row in map(evaluation.row, HEADLINE) if row.greedy.phases]
    lines = headline_lines(evaluation)[1:]
    if not evaluation.row("draft").greedy.phases:
        rows = [evaluation.row(name) for name in OLD_HEADLINE]
        tiles, lines = [_tile(row, row.sampled, "sampled") for row in rows if row.sampled.phases], []
    notes = [
        element("p", line[0].upper() + line[1:].replace("->", "→"), class_="note tiles-note") for line in lines
    ]  # fmt: skip
    return element("div", element("div", tiles, class_="tiles"), notes)


def _tile(row: Row, shown: Figure, decoding: str) -> Html:
    means = [element("b", _value(this.mean, row)) for this in shown.phases]
    figure = [means[0], element("i", "→"), means[1]] if len(means) == 2 else means
    return element(
        "div",
        element("span", f"{row.label}, {decoding}", class_="tile-label"),
        element("span", figure, class_="tile-figure"),
        element("span", _difference(shown, row, unit=" points" if row.is_share else ""), class_="tile-note"),
        class_="tile",
    )


def before_after_table(evaluation: Evaluation) -> Html:
    """The complete table, group by group, with a mark that shows both intervals of the first decoding."""
    head = element(
        "tr",
        element("th", "", scope="col"),
        [
            element("th", words, scope="col", class_="number sampled" if place == 3 else "number")
            for place, words in enumerate(
                ("greedy: before", "after", "change", "sampled: before", "after", "change")
            )
        ],
        element("th", "0 – 100 %", scope="col", class_="mark-cell"),
        element("th", "n", scope="col", class_="number count-cell"),
    )  # fmt: skip
    body: list[Html] = []
    for group, rows in grouped_rows(evaluation).items():
        body.append(element("tr", element("th", group, colspan="9", scope="colgroup"), class_="group"))
        body += [_table_row(row) for row in rows]
    return element("table", element("thead", head), element("tbody", body), class_="results")


def _table_row(row: Row) -> Html:
    mark = interval_mark(row.figures[0].before, row.figures[0].after) if row.is_share else None
    return element(
        "tr",
        element("th", row.label, element("small", row.hint) if row.hint else None, scope="row"),
        _cells(row, row.greedy, missing="–" if row.decoding == "sampled" else "not measured"),
        _cells(row, row.sampled, missing="the same" if row.decoding == "once" else "not measured", first="sampled"),
        element("td", mark, class_="mark-cell"),
        element("td", " / ".join(f"{count:,}" for count in row.counts), class_="number count-cell"),
    )


def _cells(row: Row, shown: Figure, *, missing: str, first: str = "") -> list[Html]:
    """Before, after and change in one decoding; one cell that says why there is none."""
    if not shown.phases:
        return [
            element("td", element("span", missing, class_="missing"), colspan="3", class_=f"number {first}".strip())
        ]
    return [
        element("td", _cell(shown.before, row), class_=f"number {first}".strip()),
        element("td", _cell(shown.after, row), class_="number"),
        element("td", _difference(shown, row), class_="number"),
    ]


def _cell(interval: Interval | None, row: Row) -> Sequence[Html]:
    if interval is None:
        return [element("span", "not measured", class_="missing")]
    return [element("b", _value(interval.mean, row)), element("small", _bounds(interval, row))]


def _value(value: float, row: Row) -> str:
    return f"{100 * value:.1f} %" if row.is_share else f"{value:.3f}"


def _bounds(interval: Interval, row: Row) -> str:
    if row.is_share:
        return f"{100 * interval.low:.1f} – {100 * interval.high:.1f}"
    return f"{interval.low:.3f} – {interval.high:.3f}"


def _difference(shown: Figure, row: Row, unit: str = "") -> list[Html]:
    change = shown.difference
    if change is None:
        return [element("span", "–", class_="missing")]
    factor, digits = (100, 1) if row.is_share else (1, 3)
    wanted = row.measure.wanted if row.measure else "more"
    better = change.mean > 0 if wanted == "more" else change.mean < 0
    kind = "unsure" if not change.excludes_zero or wanted == "neither" else "up" if better else "down"
    bounds = f"{_signed(factor * change.low, digits)} to {_signed(factor * change.high, digits)}"
    return [element("b", _signed(factor * change.mean, digits) + unit, class_=kind), element("small", bounds)]


def _signed(value: float, digits: int) -> str:
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    # U+2212: a hyphen is too short beside tabular figures.
    return f"+{text}" if value > 0 else f"\N{MINUS SIGN}{text}"
