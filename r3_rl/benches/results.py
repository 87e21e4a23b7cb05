"""What an evaluation found, as data: every figure of every model, and the changes between models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from r3_rl.benches.base import Figure, ItemBench
from r3_rl.benches.resampling import Estimate, Values, difference, estimate
from r3_rl.observe.statistics import Interval


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """A figure in one decoding."""

    models: Mapping[str, Estimate]
    """By key of the model."""
    changes: Mapping[tuple[str, str], Estimate]
    """By the keys of both: the second one less the first one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """A figure in all decodings."""

    figure: Figure
    cells: Mapping[str, Cells]
    """By decoding, greedy first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BenchResult:
    """What one bench found."""

    bench: ItemBench
    rows: Sequence[Row]

    @property
    def num_items(self) -> int:
        """Prompts, questions, pairs: what intervals are over."""
        return max(
            (e.over_items.count for row in self.rows for c in row.cells.values() for e in c.models.values()), default=0
        )


def bench_result(
    bench: ItemBench, measured: Mapping[tuple[str, str], Values], comparisons: Sequence[tuple[str, str]]
) -> BenchResult:
    """Compute the rows of a bench's table.

    Args:
        bench: says which figures there are.
        measured: values by model and decoding.
        comparisons: pairs of models.
    """
    names = list(dict.fromkeys(name for values in measured.values() for name in values.arrays))
    models = list(dict.fromkeys(model for model, _ in measured))
    rows = []
    for figure in bench.figures(names):
        cells = {
            decoding: _cells(figure, {m: measured[m, decoding] for m in models}, comparisons)
            for decoding in bench.decodings
        }
        if any(c.models for c in cells.values()) and not _nothing_unscored(figure, cells):
            rows.append(Row(figure=figure, cells=cells))
    return BenchResult(bench=bench, rows=rows)


def _cells(figure: Figure, values: Mapping[str, Values], comparisons: Sequence[tuple[str, str]]) -> Cells:
    found = {model: estimate(these, figure) for model, these in values.items()}
    changes = {}
    for before, after in comparisons:
        changed = difference(values[before], values[after], figure)
        if changed is not None:
            changes[before, after] = changed
    return Cells(models={model: this for model, this in found.items() if this is not None}, changes=changes)


def _nothing_unscored(figure: Figure, cells: Mapping[str, Cells]) -> bool:
    """Whether it is the row of missing scores and none is missing."""
    found = [this.over_items.mean for c in cells.values() for this in c.models.values()]
    return figure.name == "unscored" and not any(found)


def distance_rows(
    found: Mapping[tuple[str, str], Mapping[Figure, float]], count: int, comparisons: Sequence[tuple[str, str]]
) -> list[Row]:
    """Return the rows of figures that whole sets of images have; they have no intervals.

    Args:
        found: by model and decoding.
        count: images of a set.
        comparisons: pairs of models.
    """

    def alone(value: float) -> Estimate:
        return Estimate(over_items=Interval(mean=value, low=value, high=value, count=count), over_seeds=None)

    rows = []
    for figure in dict.fromkeys(figure for figures in found.values() for figure in figures):
        cells = {}
        for decoding in dict.fromkeys(decoding for _, decoding in found):
            values = {model: figures[figure] for (model, of), figures in found.items() if of == decoding}
            changes = {pair: alone(values[pair[1]] - values[pair[0]]) for pair in comparisons}
            cells[decoding] = Cells(models={model: alone(v) for model, v in values.items()}, changes=changes)
        rows.append(Row(figure=figure, cells=cells))
    return rows


def document(results: Sequence[BenchResult], head: Mapping[str, Any]) -> dict[str, Any]:
    """Return `table.json`: `head`, then each bench with its facts and rows."""
    return {
        **head,
        "benches": [
            {
                "name": result.bench.name,
                "title": result.bench.title,
                "facts": dict(result.bench.facts),
                "items": result.num_items,
                "figures": [_row(row) for row in result.rows],
            }
            for result in results
        ],
    }


def _row(row: Row) -> dict[str, Any]:
    figure = row.figure
    said = {name: getattr(figure, name) for name in ("name", "label", "hint", "group", "unit", "wanted", "headline")}
    return {**said, "decodings": {decoding: _cells_document(cells) for decoding, cells in row.cells.items()}}


def _cells_document(cells: Cells) -> dict[str, Any]:
    return {
        "models": {model: _estimate(this) for model, this in cells.models.items()},
        "changes": {f"{after} - {before}": _estimate(change) for (before, after), change in cells.changes.items()},
    }


def _estimate(this: Estimate) -> dict[str, Any]:
    found: dict[str, Any] = this.over_items.as_dict()
    if this.over_seeds is not None:
        found["over_seeds"] = this.over_seeds.as_dict()
    if this.tally is not None:
        found |= asdict(this.tally)
    return found
