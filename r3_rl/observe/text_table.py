"""Figures as plain text: the table that a run prints, and the few lines that a reader should remember."""

from __future__ import annotations

from collections.abc import Iterator

from r3_rl.observe.evaluation import Evaluation, Figure, Row, grouped_rows
from r3_rl.observe.measures import HEADLINE, SHARE, unit_of
from r3_rl.observe.statistics import Interval

_WIDTH = 21
_SHORT = {"draft": "draft", "final": "final", "ita_fixed": "ITA", "questions": "questions"}


def percent(interval: Interval, *, signed: bool = False) -> str:
    """A share, or a difference of shares, in per cent.

    >>> percent(Interval(mean=0.5, low=0.25, high=0.75, count=4))
    ' 50.0 [ 25.0,  75.0]'
    """
    mean, low, high = (100 * value for value in (interval.mean, interval.low, interval.high))
    return f"{mean:+5.1f} [{low:+5.1f}, {high:+5.1f}]" if signed else f"{mean:5.1f} [{low:5.1f}, {high:5.1f}]"


def figure(name: str, interval: Interval, *, signed: bool = False) -> str:
    """An interval in the unit of its name: per cent, nats a token, or levels of a pixel's value.

    >>> figure("entropy_plan", Interval(mean=0.5, low=0.25, high=0.75, count=4))
    ' .500 [ .250,  .750] nats'
    """
    if (unit := unit_of(name)) == SHARE:
        return percent(interval, signed=signed)
    mean, low, high = (
        f"{value:{'+' if signed else ''}.3f}".replace("0.", ".", 1).rjust(5)
        for value in (interval.mean, interval.low, interval.high)
    )
    return f"{mean} [{low}, {high}] {unit}"


def table_lines(evaluation: Evaluation) -> Iterator[str]:
    """Before -> after with 95 % intervals, greedy above sampled; kinds of prompts and questions are left out."""
    for rows in grouped_rows(evaluation).values():
        for row in rows:
            if "/" not in row.name:
                yield from _lines_of(row)


def _lines_of(row: Row) -> Iterator[str]:
    title = row.name
    for words, shown in (("once" if row.decoding == "once" else "greedy", row.greedy), ("sampled", row.sampled)):
        if shown.phases:
            yield f"{title:24}{words:9}{_phases(row.name, shown)}".rstrip()
            title = ""


def _phases(name: str, shown: Figure) -> str:
    before, after = (
        figure(name, this) if this else " " * _WIDTH for this in (shown.before, shown.after)
    )  # fmt: skip
    change = f"   {figure(name, shown.difference, signed=True)}" if shown.difference else ""
    return f"{before}  ->  {after}{change}"


def headline_lines(evaluation: Evaluation) -> list[str]:
    """The greedy figures, and after them the sampled ones with the entropy of the texts.

    Greedy first: what sampling at a temperature loses, any training that sharpens the texts wins back, whatever it
    rewards. Sampled figures that rise while greedy ones do not are not a gain in competence.
    """
    rows = [evaluation.row(name) for name in HEADLINE]
    greedy = [_short(row, row.greedy, change=True) for row in rows if row.greedy.phases]
    sampled = [_short(row, row.sampled, change=False) for row in rows if row.sampled.phases]
    entropies = [
        f"{words} {_arrow(shown, '{:.2f}', 1)}"
        for words, name in (("plans", "entropy_plan"), ("critiques", "entropy_critique"))
        if (shown := evaluation.figure(name)).phases
    ]
    lines = []
    if greedy:
        lines.append(f"greedy texts, untrained -> trained, %: {', '.join(greedy)}")
    if sampled:
        entropy = f"; entropy in nats a token: {', '.join(entropies)}" if entropies else ""
        lines.append(f"sampled texts: {', '.join(sampled)}{entropy}")
    return lines


def _short(row: Row, shown: Figure, *, change: bool) -> str:
    text = f"{_SHORT[row.name]} {_arrow(shown, '{:.1f}', 100)}"
    if not change or shown.difference is None:
        return text
    low, mean, high = (
        f"{100 * value:+.1f}" for value in (shown.difference.low, shown.difference.mean, shown.difference.high)
    )
    return f"{text} ({mean} [{low}, {high}])"


def _arrow(shown: Figure, form: str, scale: float) -> str:
    return " -> ".join(form.format(scale * this.mean) for this in shown.phases)
