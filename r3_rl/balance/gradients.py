"""Understanding and generation as two objectives: their gradients measured, and combined where they conflict.

Every `probe_every` steps (every step with an aggregator) each objective's gradient of the trained parameters is
accumulated apart: cosine and norms are logged; an aggregator of torchjd may replace the plain sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from r3_rl import ranks
from r3_rl.errors import MissingPackageError
from r3_rl.observe.metrics import Numbers, combine


class HasObjective(Protocol):
    """A credit, as far as balancing sees it."""

    @property
    def objective(self) -> str:
        """understanding or generation."""
        ...


CreditT = TypeVar("CreditT", bound=HasObjective)

OBJECTIVES = ("understanding", "generation")
AGGREGATORS = {
    "pcgrad": "PCGrad",
    "mgda": "MGDA",
    "upgrad": "UPGrad",
    "cagrad": "CAGrad",
    "config": "ConFIG",
    "aligned_mtl": "AlignedMTL",
}
_CAGRAD_RADIUS = 0.5
_AVERAGED = {"mgda": 1.0, "upgrad": 1.0, "cagrad": 1 + _CAGRAD_RADIUS, "aligned_mtl": 1.0}
"""Aggregators that average: what they make of equal gradients, in units of one of them. The others add up."""
_INSTALL = "pip install 'r3-rl[balance]'"


class Balancer:
    """Accumulates a step's gradient, objective by objective where that is asked for."""

    def __init__(
        self, module: nn.Module, *, aggregator: str, probe_every: int, seed: int, shards: Sequence[nn.Parameter] = ()
    ) -> None:
        """shards: this process's parts of what is trained, where `run` leaves gradients that are added up already."""
        assert not shards or aggregator == "sum", "an aggregator sees whole gradients"
        self.sharded = bool(shards)
        self.parameters = list(shards) or [p for p in module.parameters() if p.requires_grad]
        self.probe_every = probe_every
        self.aggregate = None if aggregator == "sum" else load_aggregator(aggregator)
        self.generator_seed = seed

    def accumulate(
        self,
        step: int,
        credits: Sequence[CreditT],
        run: Callable[[Sequence[CreditT], tuple[float, float]], Numbers],
        normalisers: tuple[float, float],
    ) -> Numbers:
        """Leaves the combined gradient in the parameters, added up over the processes. `run` accumulates the gradient
        of some of this process's credits and returns their numbers; those of a probed step have the gradients' too."""
        due = self.probe_every > 0 and step % self.probe_every == 0
        parts = {o: [c for c in credits if c.objective == o] for o in OBJECTIVES}
        both = (due or self.aggregate) and all(ranks.total(*(float(len(part)) for part in parts.values())))
        if not both:
            numbers = run(credits, normalisers)
            if not self.sharded:
                ranks.add_gradients(self.parameters)
            return numbers
        rows, numbers_of_parts = [], []
        for part in parts.values():
            before = self._take()
            numbers_of_parts.append(run(part, normalisers))
            rows.append(self._take() if self.sharded else ranks.add_up(self._take()))
            self._give(before)
        compared = compare(*rows, sharded=self.sharded)
        if self.aggregate is None:
            combined = rows[0] + rows[1]
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.generator_seed + step)  # PCGrad draws an order
                combined = self.aggregate(torch.stack(rows))
        self._give(combined)
        return combine(numbers_of_parts, over="batches") | compared

    def _take(self) -> Tensor:
        """The gradient as one vector, and the parameters without it."""
        flat = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        return torch.cat(flat)

    def _give(self, vector: Tensor) -> None:
        at = 0
        for p in self.parameters:
            part = vector[at : at + p.numel()].view_as(p)
            p.grad = part.clone() if p.grad is None else p.grad + part
            at += p.numel()


def compare(understanding: Tensor, generation: Tensor, *, sharded: bool = False) -> dict[str, float]:
    """Cosine and norms of two gradients, or of this process's parts of them.

    >>> compare(torch.tensor([1.0, 0.0]), torch.tensor([-2.0, 0.0]))["grad/cosine"]
    -1.0
    """
    a, b, dot = understanding.norm(), generation.norm(), understanding @ generation
    if sharded:
        squares = ranks.add_up(torch.stack([a.square(), b.square(), dot]))
        (a, b), dot = squares[:2].sqrt(), squares[2]
    product = float(a * b)
    return {
        **({"grad/cosine": float(dot) / product} if product > 0 else {}),
        "grad/norm_understanding": float(a),
        "grad/norm_generation": float(b),
    }


def load_aggregator(name: str) -> Callable[[Tensor], Tensor]:
    """An aggregator of torchjd: [objectives, n] -> [n], scaled so that gradients without conflict give their sum."""
    try:
        import torchjd.aggregation as aggregation
    except ImportError as error:
        raise MissingPackageError(f"balance.aggregator '{name}' needs torchjd", hint=_INSTALL) from error
    options: dict[str, Any] = {"c": _CAGRAD_RADIUS} if name == "cagrad" else {}
    try:
        aggregator = getattr(aggregation, AGGREGATORS[name])(**options)
    except ImportError as error:
        raise MissingPackageError(f"aggregator '{name}': {error}", hint=_INSTALL) from error
    if name in _AVERAGED:
        return lambda rows: aggregator(rows) * (rows.shape[0] / _AVERAGED[name])
    return aggregator  # type: ignore[no-any-return]
