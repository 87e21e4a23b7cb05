"""An evaluation as Markdown: a table for each bench and each comparison, greedy above sampled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from r3_rl.benches.base import Figure
from r3_rl.benches.resampling import Estimate
from r3_rl.benches.results import BenchResult, Cells, Row
from r3_rl.observe.statistics import Interval


def shown(figure: Figure, interval: Interval, *, signed: bool = False) -> str:
    """A figure in its unit with its interval.

    >>> shown(Figure(name="draft", label=""), Interval(mean=0.5, low=0.25, high=0.75, count=4))
    '50.0 [25.0, 75.0]'
    """
    if figure.unit == "distance":
        return f"{interval.mean:{'+' if signed else ''}.3f}"
    scale, digits = (1.0, 2) if figure.unit == "number" else (100.0, 1)
    sign = "+" if signed or figure.unit == "change" else ""
    mean, low, high = (f"{scale * v:{sign}.{digits}f}" for v in (interval.mean, interval.low, interval.high))
    return f"{mean} [{low}, {high}]"


def markdown(results: Sequence[BenchResult], models: Mapping[str, str], facts: Mapping[str, str]) -> str:
    """Return `table.md`.

    Args:
        results: bench by bench.
        models: what each key stands for.
        facts: of the evaluation: seeds, rounds, how it draws.
    """
    lines = ["# Evaluation", ""]
    lines += [f"* {key}: {source}" for key, source in models.items()]
    lines += [f"* {name}: {value}" for name, value in facts.items()]
    lines += [
        "",
        "Per cent, with 95 % intervals over items (an item keeps all its seeds); changes are paired by item. "
        "Win / tie / loss: items on which the second model is better, equal or worse; in brackets after a gain of one "
        "model, items on which the rounds help, change nothing or harm. Greedy: every text is the likeliest one.",
    ]
    for result in results:
        said = f"n = {result.num_items}. {_sentence(result.bench.facts)}".rstrip()
        lines += ["", f"## {result.bench.title}", "", said, "", *_table(result, list(models))]
    return "\n".join(lines) + "\n"


def _sentence(facts: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in facts.items())


def _table(result: BenchResult, models: Sequence[str]) -> Iterator[str]:
    pairs = list(dict.fromkeys(pair for row in result.rows for c in row.cells.values() for pair in c.changes))
    head = ["", "decoding", *models]
    for before, after in pairs:
        head += [f"{after} - {before}", "win / tie / loss"]
    yield markdown_line(head)
    yield markdown_line(["---"] * len(head))
    group = ""
    for row in result.rows:
        if row.figure.group != group:
            group = row.figure.group
            yield markdown_line([f"**{group}**", *[""] * (len(head) - 1)])
        yield from _rows(row, models, pairs)


def _rows(row: Row, models: Sequence[str], pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    title = row.figure.label + (f" ({row.figure.hint})" if row.figure.hint else "")
    for decoding, cells in row.cells.items():
        yield markdown_line(
            [title, decoding, *_model_cells(row.figure, cells, models), *_change_cells(row, cells, pairs)]
        )
        title = ""


def _model_cells(figure: Figure, cells: Cells, models: Sequence[str]) -> Iterator[str]:
    for model in models:
        found = cells.models.get(model)
        said = f" ({counts(found)})" if counts(found) else ""
        yield "-" if found is None else shown(figure, found.over_items) + said


def _change_cells(row: Row, cells: Cells, pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    for pair in pairs:
        change = cells.changes.get(pair)
        yield "-" if change is None else shown(row.figure, change.over_items, signed=True)
        yield counts(change)


def counts(found: Estimate | None) -> str:
    """Win / tie / loss in figures; empty if they are not counted."""
    if found is None or found.tally is None:
        return ""
    return f"{found.tally.wins} / {found.tally.ties} / {found.tally.losses}"


def markdown_line(cells: Sequence[str]) -> str:
    """A line of a Markdown table.

    >>> markdown_line(["a", "b|c"])
    '| a | b\\\\|c |'
    """
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def headline_lines(results: Sequence[BenchResult], comparisons: Sequence[tuple[str, str]]) -> list[str]:
    """The figures to remember, greedy: one line each, with the first comparison's change."""
    lines = []
    for result in results:
        for row in result.rows:
            cells = next(iter(row.cells.values()))
            if row.figure.headline and cells.models:
                lines.append(_headline(result, row, cells, comparisons))
    return lines


def _headline(result: BenchResult, row: Row, cells: Cells, comparisons: Sequence[tuple[str, str]]) -> str:
    name = f"{result.bench.name} {row.figure.label}"
    change = cells.changes.get(comparisons[0]) if comparisons else None
    if change is None:
        model, found = next(iter(cells.models.items()))
        return f"{name:48}{model} {shown(row.figure, found.over_items)}"
    before, after = (cells.models[key].over_items for key in comparisons[0])
    scale = 1.0 if row.figure.unit in ("number", "distance") else 100.0
    means = f"{scale * before.mean:.1f} -> {scale * after.mean:.1f}"
    return f"{name:48}{means:16}{shown(row.figure, change.over_items, signed=True):26}{counts(change)}"
