"""Metrics with the number of items behind each, and how they combine over micro-batches, ranks and steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from r3_rl.observe.metrics import How, Metric, find_metric

if TYPE_CHECKING:
    import torch

Over = Literal["batches", "ranks", "steps"]
"""What values are combined over: the micro-batches and rounds of a step in one process, the processes of a step, the
steps of a line."""
_NONE: Mapping[str, Any] = MappingProxyType({})


class Numbers(dict[str, float]):
    """Metrics of a micro-batch, a round, a rank or a step, each with the number of items that it is over.

    Args:
        values: numbers, or tensors of one element, by name; None is missing.
        sizes: items behind a value, where their number is known; else it counts as 1.

    >>> Numbers({"kl": 0.2, "reward": None}, {"kl": 3})
    Numbers({'kl': 0.2}, {'kl': 3.0})
    """

    def __init__(self, values: Mapping[str, Any] = _NONE, sizes: Mapping[str, float] = _NONE) -> None:
        super().__init__({name: float(value) for name, value in values.items() if value is not None})
        self.sizes = {name: float(size) for name, size in sizes.items() if name in self}

    def __or__(self, other: Mapping[str, float]) -> Numbers:  # type: ignore[override]
        """These and others; of a name in both, the other's value."""
        kept = {name: size for name, size in self.sizes.items() if name not in other}
        more = other.sizes if isinstance(other, Numbers) else {}
        return Numbers({**self, **other}, {**kept, **more})

    __ior__ = __or__  # type: ignore[assignment]  # what others hold is not changed

    def __repr__(self) -> str:
        return f"Numbers({dict(self)}, {self.sizes})"


def means(items: Mapping[str, torch.Tensor]) -> Numbers:
    """The mean of every tensor over its items; nan is missing, and a mean of nothing is left out.

    >>> import torch
    >>> means({"reward": torch.tensor([0.5, math.nan, 1.0]), "kl": torch.tensor([])})
    Numbers({'reward': 0.75}, {'reward': 2.0})
    """
    present = {name: values[~values.isnan()] for name, values in items.items()}
    return Numbers(
        {name: values.float().mean() for name, values in present.items() if len(values)},
        {name: len(values) for name, values in present.items()},
    )


def combine(parts: Sequence[Numbers], *, over: Over) -> Numbers:
    """Combine the values of micro-batches, ranks or steps, each as the table says.

    mean = sum(size * value) / sum(size) over micro-batches and ranks, so parts of different sizes give what one batch
    would give. Over steps each step counts alike. What has no item (size 0) enters nothing. A value that is not finite
    stays visible: it makes the result not finite. A name that the table lacks (a scorer's own) is a mean.

    Args:
        parts: one for each micro-batch, rank or step.
        over: which of them.

    >>> ranks = [Numbers({"kl": 0.2, "loss": 1.0, "image/count": 8}, {"kl": 3}), Numbers({"kl": 0.4, "loss": 0.5})]
    >>> combine(ranks, over="ranks")
    Numbers({'kl': 0.25, 'loss': 1.5, 'image/count': 8.0}, {'kl': 4.0})
    >>> combine(ranks, over="steps")["image/count"]
    4.0
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for part in parts:
        for name, value in part.items():
            if (size := part.sizes.get(name, 1.0)) > 0:
                found.setdefault(name, []).append((value, 1.0 if over == "steps" else size))
    known = {name for part in parts for name in part.sizes}
    rows = {name: find_metric(name) or Metric(name=name, unit="1", meaning="") for name in found}
    how = {name: {"batches": row.batches, "ranks": row.ranks, "steps": row.steps}[over] for name, row in rows.items()}
    return Numbers(
        {name: _combined(how[name], pairs, len(parts)) for name, pairs in found.items()},
        {name: math.fsum(size for _, size in pairs) for name, pairs in found.items() if name in known},
    )


def _combined(how: How, pairs: Sequence[tuple[float, float]], num_parts: int) -> float:
    values = [value for value, _ in pairs]
    if how == "last":
        return values[-1]
    if how == "sum":
        return math.fsum(values)
    if how == "per step":
        return math.fsum(values) / num_parts
    if how == "max" and not any(math.isnan(value) for value in values):
        return max(values)
    return sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)
