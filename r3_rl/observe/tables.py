"""The before / after table of the report, and its headline figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from r3_rl.observe.charts import interval_mark
from r3_rl.observe.markup import Html, element
from r3_rl.observe.statistics import Interval

GROUPS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "Images": {
        "draft": ("Draft right", "first image, no reflection"),
        "round_1": ("Right after 1 round", "one critique and refinement, unless it stopped"),
        "final": ("Right at the end", "after all rounds"),
    },
    "Harder kinds": {
        "harder_draft": ("Draft right", "counts, count + colour, several objects"),
        "harder_final": ("Right at the end", "what the loop still adds"),
    },
    "Reflection on a fixed set of drafts": {
        "wrong_drafts_edited": ("Wrong drafts edited", "the critique asks for an edit"),
        "wrong_drafts_repaired": ("Wrong drafts repaired", "right after one refinement"),
        "right_drafts_kept": ("Right drafts left alone", "the critique says stop"),
    },
    "Swap test: the trained model's own wrong drafts": {
        "swap_own_critic_edits": ("Edited by its own critic", "should not fall below the next line"),
        "swap_base_critic_edits": ("Edited by the base's critic", "same drafts, read by the base"),
    },
    "Understanding": {
        "questions": ("Questions answered", "on images it did not draw"),
    },
}
HEADLINE = ("draft", "final", "wrong_drafts_repaired", "right_drafts_kept")
BY_TAG = "By kind of prompt"
OTHER = "Further measurements"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric of the table."""

    label: str
    hint: str
    before: Interval | None
    after: Interval | None
    difference: Interval | None

    @property
    def is_share(self) -> bool:
        """True when every bound lies in [0, 1], so that per cent is the natural unit."""
        shown = [this for this in (self.before, self.after) if this is not None]
        return bool(shown) and all(this.low >= 0 and this.high <= 1 for this in shown)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluation.json` holds, metric by metric."""

    before: Mapping[str, Interval]
    after: Mapping[str, Interval]
    differences: Mapping[str, Interval]

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Evaluation:
        """Read the parsed file.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: when it does not have the expected shape.
        """
        phases = document.get("phases", {})
        return cls(
            before=_intervals(phases.get("before", {})),
            after=_intervals(phases.get("after", {})),
            differences=_intervals(document.get("differences", {})),
        )

    def names(self) -> list[str]:
        """Every metric of either phase, in the order of the file."""
        return list(dict.fromkeys([*self.before, *self.after]))

    def row(self, name: str, label: str, hint: str = "") -> Row:
        """One metric with its words."""
        return Row(
            label=label,
            hint=hint,
            before=self.before.get(name),
            after=self.after.get(name),
            difference=self.differences.get(name),
        )


def _intervals(document: Mapping[str, Mapping[str, float]]) -> dict[str, Interval]:
    return {name: Interval.from_dict(fields) for name, fields in document.items()}


def grouped_rows(evaluation: Evaluation) -> dict[str, list[Row]]:
    """The table's rows by group; names that nobody told us about come last, under their own name."""
    names = evaluation.names()
    groups: dict[str, list[Row]] = {}
    for group, metrics in GROUPS.items():
        rows = [evaluation.row(name, *words) for name, words in metrics.items() if name in names]
        if rows:
            groups[group] = rows
    known = {name for metrics in GROUPS.values() for name in metrics}
    tags = list(dict.fromkeys(name.partition("/")[2] for name in names if name.startswith(("draft/", "final/"))))
    by_tag = [
        evaluation.row(f"{part}/{tag}", words_of(tag), hint)
        for tag in tags
        for part, hint in (("draft", "draft"), ("final", "after all rounds"))
        if f"{part}/{tag}" in names
    ]
    if by_tag:
        groups[BY_TAG] = by_tag
    other = [
        evaluation.row(name, words_of(name))
        for name in names
        if name not in known and not name.startswith(("draft/", "final/"))
    ]
    if other:
        groups[OTHER] = other
    return groups


def words_of(name: str) -> str:
    """A key as words.

    >>> words_of("color_attribution")
    'color attribution'
    """
    return name.replace("_", " ")


def headline(evaluation: Evaluation) -> Html:
    """Up to four large figures: what was gained, and whether reflection survived."""
    labels = {name: words[0] for metrics in GROUPS.values() for name, words in metrics.items()}
    tiles = []
    for name in HEADLINE:
        row = evaluation.row(name, labels[name])
        if row.before is None and row.after is None:
            continue
        means = [element("b", _value(this.mean, row)) for this in (row.before, row.after) if this is not None]
        figure = [means[0], element("i", "→"), means[1]] if len(means) == 2 else means
        tiles.append(
            element(
                "div",
                element("span", row.label, class_="tile-label"),
                element("span", figure, class_="tile-figure"),
                element("span", _difference(row, unit=" points" if row.is_share else ""), class_="tile-note"),
                class_="tile",
            )
        )
    return element("div", tiles, class_="tiles")


def before_after_table(evaluation: Evaluation) -> Html:
    """The whole table, group by group, with a mark that shows both intervals."""
    head = element(
        "tr",
        element("th", "", scope="col"),
        [element("th", name, scope="col", class_="number") for name in ("before", "after", "change, points")],
        element("th", "0 – 100 %", scope="col", class_="mark-cell"),
        element("th", "n", scope="col", class_="number count-cell"),
    )
    body: list[Html] = []
    for group, rows in grouped_rows(evaluation).items():
        body.append(element("tr", element("th", group, colspan="6", scope="colgroup"), class_="group"))
        body += [_table_row(row) for row in rows]
    return element("table", element("thead", head), element("tbody", body), class_="results")


def _table_row(row: Row) -> Html:
    counts = list(dict.fromkeys(this.count for this in (row.before, row.after) if this is not None))
    return element(
        "tr",
        element("th", row.label, element("small", row.hint) if row.hint else None, scope="row"),
        element("td", _cell(row.before, row), class_="number"),
        element("td", _cell(row.after, row), class_="number"),
        element("td", _difference(row), class_="number"),
        element("td", interval_mark(row.before, row.after) if row.is_share else None, class_="mark-cell"),
        element("td", " / ".join(f"{count:,}" for count in counts), class_="number count-cell"),
    )


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


def _difference(row: Row, unit: str = "") -> list[Html]:
    change = row.difference
    if change is None:
        return [element("span", "–", class_="missing")]
    factor, digits = (100, 1) if row.is_share else (1, 3)
    kind = "unsure" if not change.excludes_zero else "up" if change.mean > 0 else "down"
    bounds = f"{_signed(factor * change.low, digits)} to {_signed(factor * change.high, digits)}"
    return [element("b", _signed(factor * change.mean, digits) + unit, class_=kind), element("small", bounds)]


def _signed(value: float, digits: int) -> str:
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    # U+2212: a hyphen is too short beside tabular figures.
    return f"+{text}" if value > 0 else f"\N{MINUS SIGN}{text}"
