"""The gates of an adapter that is routed by task, as coloured cells: layers x tasks, and tasks x tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r3_rl.observe.markup import Html, element

NOTE = (
    "Every task takes the shared LoRA whole, and a mixture of the tasks' own, whose shares add up to 1. First how much "
    "of its own each task takes, layer by layer; then all shares, averaged over the layers: a row is the task that "
    "takes, a column whose LoRA it is. At step {first} -> at step {last}; the darker, the more."
)


def gates_section(rows: Sequence[Mapping[str, Any]]) -> list[Html]:
    """Two tables of the last gates that a run kept, each cell with its first value.

    Args:
        rows: lines of `gates.jsonl`, at least one.
    """
    first, last = rows[0], rows[-1]
    tasks, places = last["tasks"], list(last["places"])
    before, after = (np.array([row["places"][place] for place in places]) for row in (first, last))
    own = [np.diagonal(gates, axis1=1, axis2=2) for gates in (before, after)]
    mean = [gates.mean(0) for gates in (before, after)]
    note = NOTE.format(first=first["step"], last=last["step"])
    return [
        element("p", note, class_="note"),
        _table(["layer", *tasks], places, *own),
        _table(["task", *(f"of {task}" for task in tasks)], tasks, *mean),
    ]


def _table(heads: Sequence[str], names: Sequence[str], before: np.ndarray, after: np.ndarray) -> Html:
    """Shares [rows, columns] in [0, 1]."""
    head = element("tr", [element("th", words, scope="col") for words in heads])
    body = [
        element("tr", element("th", name, scope="row"), [_cell(*pair) for pair in zip(first, last, strict=True)])
        for name, first, last in zip(names, before.tolist(), after.tolist(), strict=True)
    ]
    table = element("table", element("thead", head), element("tbody", body), class_="heat")
    return element("div", table, class_="box", style="overflow-x: auto; margin-bottom: 14px")


def _cell(first: float, last: float) -> Html:
    """
    >>> _cell(0.4, 0.5)
    '<td style="background: rgba(52, 120, 200, 0.38)" class="number">0.40 -&gt; 0.50</td>'
    """
    style = f"background: rgba(52, 120, 200, {0.75 * last:.2f})"
    return element("td", f"{first:.2f} -> {last:.2f}", style=style, class_="number")
