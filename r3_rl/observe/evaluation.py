"""What `evaluation.json` holds, figure by figure: before and after training, greedy and sampled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from r3_rl.observe.measures import GREEDY, GROUPS, SHARE, Measure, greedy, measure_of, pattern, plain, plain_names
from r3_rl.observe.statistics import Interval

BY_TAG = "By kind of prompt"
OTHER = "Further measurements"
_TAGGED = ("draft/", "final/")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measurement in one decoding."""

    before: Interval | None = None
    after: Interval | None = None
    difference: Interval | None = None

    @property
    def phases(self) -> list[Interval]:
        """What was measured, before first."""
        return [this for this in (self.before, self.after) if this is not None]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement of the table."""

    name: str
    """As in `evaluation.json`, without its decoding."""
    label: str
    hint: str
    greedy: Figure
    """Of the likeliest words; of a measurement for which no text is written, its only figure."""
    sampled: Figure
    measure: Measure | None
    """None for a name that `observe.measures` does not know."""

    @property
    def decoding(self) -> str:
        """`both`, `sampled` or `once`, as in `Measure`."""
        return self.measure.decoding if self.measure else "both"

    @property
    def figures(self) -> list[Figure]:
        """Those that hold something, greedy first."""
        return [this for this in (self.greedy, self.sampled) if this.phases]

    @property
    def is_share(self) -> bool:
        """True if it is a share, so that per cent is the natural unit. A name that nobody told us about is taken for
        one if every bound is in [0, 1]."""
        if self.measure is not None:
            return self.measure.unit == SHARE
        shown = [this for figure in self.figures for this in figure.phases]
        return bool(shown) and all(this.low >= 0 and this.high <= 1 for this in shown)

    @property
    def counts(self) -> list[int]:
        """Numbers of cases, each once."""
        return list(dict.fromkeys(this.count for figure in self.figures for this in figure.phases))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Intervals by name, both phases and the change between them."""

    before: Mapping[str, Interval]
    after: Mapping[str, Interval]
    differences: Mapping[str, Interval]
    words: Mapping[str, str] = field(default_factory=dict)
    """What figures of a world's own are called, by their names without decoding."""

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Evaluation:
        """Read the parsed file.

        A run from before figures were measured in both decodings has no greedy name; its questions were read greedily,
        and are called so here.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: when it does not have the expected shape.
        """
        phases = document.get("phases", {})
        parts = [phases.get("before", {}), phases.get("after", {}), document.get("differences", {})]
        if not any(name.partition("/")[0].endswith(GREEDY) for part in parts for name in part):
            parts = [{greedy(n) if n == "questions" else n: fields for n, fields in p.items()} for p in parts]
        before, after, differences = ({n: Interval.from_dict(fields) for n, fields in p.items()} for p in parts)
        words = {str(name): str(said) for name, said in document.get("words", {}).items()}
        return cls(before=before, after=after, differences=differences, words=words)

    def names(self) -> list[str]:
        """Every figure of either phase, in the order of the file."""
        return list(dict.fromkeys([*self.before, *self.after]))

    def figure(self, name: str) -> Figure:
        """One name's figures; empty if it was not measured."""
        return Figure(
            before=self.before.get(name), after=self.after.get(name), difference=self.differences.get(name)
        )  # fmt: skip

    def row(self, name: str, label: str = "", hint: str = "") -> Row:
        """A measurement with its words, by default those of `observe.measures`.

        Args:
            name: without decoding.
            label, hint: other words.
        """
        measure = measure_of(name)
        number = re.search(r"\d+", name)
        words = measure.label.replace("#", number.group() if number else "") if measure else words_of(name)
        once = measure is not None and measure.decoding == "once"
        return Row(
            name=name,
            label=label or words,
            hint=hint or (measure.hint if measure and not label else ""),
            greedy=self.figure(name if once else greedy(name)),
            sampled=Figure() if once else self.figure(name),
            measure=measure,
        )


def grouped_rows(evaluation: Evaluation) -> dict[str, list[Row]]:
    """The table's rows by group; names that `observe.measures` does not know come last, under their own name."""
    names = [name for name in plain_names(evaluation.names()) if not _repeats(evaluation, name)]
    groups: dict[str, list[Row]] = {}
    for group, measures in GROUPS.items():
        rows = [_row(evaluation, name) for key in measures for name in names if _key(name) == key]
        if rows:
            groups[group] = rows
    known = {row.name for rows in groups.values() for row in rows}
    tags = list(dict.fromkeys(name.partition("/")[2] for name in names if name.startswith(_TAGGED)))
    by_tag = [
        evaluation.row(part + tag, words_of(tag), hint)
        for tag in tags
        for part, hint in zip(_TAGGED, ("draft", "after all rounds"), strict=True)
        if part + tag in names
    ]
    if by_tag:
        groups[BY_TAG] = by_tag
    other = [
        evaluation.row(name, words_of(name)) for name in names if name not in known and not name.startswith(_TAGGED)
    ]
    if other:
        groups[OTHER] = other
    return groups


def _repeats(evaluation: Evaluation, name: str) -> bool:
    """Whether a figure of the harder kinds is that of all kinds: every prompt is of a harder one then."""
    whole = name.removeprefix("harder_")
    if whole == name:
        return False
    measured = [phase for phase in (evaluation.before, evaluation.after) if name in phase]
    return all(whole in phase and phase[whole] == phase[name] for phase in measured)


def _key(name: str) -> str:
    """The name's key in the table: its own, or that of the measurement whose kind it is."""
    known = {key for measures in GROUPS.values() for key in measures}
    own, all_kinds = pattern(name), pattern(name).partition("/")[0]
    return own if own in known or name.startswith(_TAGGED) else all_kinds


def _row(evaluation: Evaluation, name: str) -> Row:
    """A kind that the table does not name is called what the run calls it, or by its own name."""
    kind = plain(name).partition("/")[2]
    return evaluation.row(
        name, f"… {evaluation.words.get(name, words_of(kind))}" if kind and _key(name) != pattern(name) else ""
    )


def words_of(name: str) -> str:
    """A key as words.

    >>> words_of("color_attribution")
    'color attribution'
    """
    return name.replace("_", " ")


__all__ = ["BY_TAG", "OTHER", "Evaluation", "Figure", "Row", "grouped_rows", "plain", "words_of"]
