"""Understanding and generation as objectives of their own: their gradients measured, and combined where they conflict.

Every `probe_every` steps (every step with an aggregator) each objective's gradient of the trained parameters is
accumulated apart. Norms and cosines are logged; an aggregator may replace the plain sum (`aggregators.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from r3_rl import ranks, registered
from r3_rl.balance.conflict import KINDS, Conflict, grams_by_place
from r3_rl.observe.numbers import Numbers, combine
from r3_rl.types import STAGES

SUM = "sum"
GENERATION = KINDS[1]
DRAWN = ("draft", "refinement")
"""Stages whose credits are of images."""


class HasObjective(Protocol):
    """A credit, as far as balancing sees it."""

    @property
    def stage(self) -> str:
        """One of `STAGES`."""
        ...

    @property
    def objective(self) -> str:
        """One of `KINDS`."""
        ...


CreditT = TypeVar("CreditT", bound=HasObjective)


class Balancer:
    """Accumulates a step's gradient, objective by objective where that is asked for.

    Args:
        places: what is trained, and where each of its parameters counts (`conflict.place_of`).
        aggregator: `sum`, or as `balance.aggregator` of a recipe says it.
        probe_every: steps between two measurements; 0 is never.
        seed: of the run, for aggregators that draw.
        by_stage: objectives are stages (plan, draft, critique, refinement), not kinds (understanding, generation).
        over_parts: for parameters in shards, in which `run` leaves gradients that are added up over the processes
            already: the sum of what each shard contributes to a number.
        kept_from_images: parameters that gradients of images are not given to, so of both kinds of credits the
            gradients are always accumulated apart.

    Raises:
        InputError: an aggregator that is not to be found.
    """

    def __init__(
        self,
        places: Mapping[nn.Parameter, str],
        *,
        aggregator: str,
        probe_every: int,
        seed: int,
        by_stage: bool = False,
        over_parts: Callable[[Tensor], Tensor] | None = None,
        kept_from_images: Collection[nn.Parameter] = (),
    ) -> None:
        self.places, self.probe_every, self.seed = places, probe_every, seed
        self.by_stage, self.over_parts = by_stage, over_parts
        self.on_probe: Callable[[Conflict], None] | None = None
        """Called with what a step found that told objectives apart."""
        found: Any = registered.find(registered.AGGREGATORS, aggregator)
        self.aggregate: Any = found() if inspect.isclass(found) else found
        """An `Aggregate`, which may also have `state` and `load`."""
        self.kept_from_images = list(kept_from_images)
        self.always = aggregator != SUM or bool(self.kept_from_images)
        self._touched: list[bool] = []
        """Of each parameter, whether an objective of the last step that told them apart reached it."""

    def accumulate(
        self,
        step: int,
        credits: Sequence[CreditT],
        run: Callable[[Sequence[CreditT], tuple[float, float]], Numbers],
        normalisers: tuple[float, float],
    ) -> Numbers:
        """Leaves the combined gradient in the parameters, added up over the processes. `run` accumulates the gradient
        of some of this process's credits and returns their numbers; those of a probed step have the gradients' too."""
        apart = self.always or (self.probe_every > 0 and step % self.probe_every == 0)
        parts = self.parts(credits) if apart else {}
        if len(parts) < 2:
            with self._given(next(iter(parts), "")):
                numbers = run(credits, normalisers)
            if self.over_parts is None:
                ranks.add_gradients(list(self.places))
            return numbers
        numbers_of_parts: list[Numbers] = []
        vectors = self.apart(parts, lambda part: numbers_of_parts.append(run(part, normalisers)))
        conflict = self._combined(step, tuple(parts), vectors)
        if self.on_probe is not None:
            self.on_probe(conflict)
        return combine(numbers_of_parts, over="batches") | conflict.numbers()

    def apart(self, parts: Mapping[str, Sequence[CreditT]], run: Callable[[Sequence[CreditT]], object]) -> list[Tensor]:
        """The gradient of each part as a vector, over all processes; what the parameters hold stays as it is."""
        vectors = []
        touched = torch.zeros(len(self.places), device=next(iter(self.places)).device)
        for name, part in parts.items():
            held = [p.grad for p in self.places]
            for p in self.places:
                p.grad = None
            with self._given(name):
                run(part)
            touched += torch.tensor([float(p.grad is not None) for p in self.places], device=touched.device)
            gradients = (torch.zeros_like(p) if p.grad is None else p.grad for p in self.places)
            flat = [ranks.part(gradient).flatten() for gradient in gradients]
            for p in self.places:
                p.grad = None
            vectors.append(torch.cat(flat) if self.over_parts else ranks.add_up(torch.cat(flat)))
            for p, gradient in zip(self.places, held, strict=True):
                p.grad = gradient
        self._touched = (ranks.add_up(touched) > 0).tolist()
        return vectors

    @contextmanager
    def _given(self, objective: str) -> Iterator[None]:
        """Around what accumulates an objective's gradient: parameters that it is not given to have what they had, and
        not zeros more, which would let momentum move them."""
        held = {p: p.grad for p in self.kept_from_images} if objective in (GENERATION, *DRAWN) else {}
        for p in held:
            p.grad = None
        yield
        for p, gradient in held.items():
            p.grad = gradient

    def state(self) -> dict[str, Any]:
        """What the aggregator remembers from step to step, for a checkpoint."""
        return self.aggregate.state() if hasattr(self.aggregate, "state") else {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        if hasattr(self.aggregate, "load"):
            self.aggregate.load(dict(state))

    def parts(self, credits: Sequence[CreditT]) -> dict[str, list[CreditT]]:
        """Credits by objective; an objective that no process has credits of is none."""
        names = STAGES if self.by_stage else KINDS
        parts = {n: [c for c in credits if (c.stage if self.by_stage else c.objective) == n] for n in names}
        counts = ranks.total(*(float(len(part)) for part in parts.values()))
        return {name: part for (name, part), count in zip(parts.items(), counts, strict=True) if count}

    def _combined(self, step: int, objectives: tuple[str, ...], vectors: Sequence[Tensor]) -> Conflict:
        """Gives the parameters the weighted sum of the objectives' gradients."""
        grams = grams_by_place(vectors, self._sizes, list(self.places.values()))
        if self.over_parts:
            grams = dict(zip(grams, self.over_parts(torch.stack(list(grams.values()))), strict=True))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + step)  # PCGrad draws an order
            weights = self.aggregate(torch.stack(list(grams.values())).sum(dim=0))
        found = Conflict(step=step, objectives=objectives, grams=grams, weights=tuple(weights.tolist()))
        combined = [v if weight == 1 else weight * v for v, weight in zip(vectors, found.weights, strict=True)]
        self._give(torch.stack(combined).sum(dim=0) if len(combined) > 2 else combined[0] + combined[1])
        return found

    def _give(self, vector: Tensor) -> None:
        """Adds a vector to the gradient. What no objective touched in any process has none: zeros would let momentum
        move weights that a step does not train."""
        for p, values, touched in zip(self.places, vector.split(self._sizes), self._touched, strict=True):
            if not touched:
                continue
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            held = ranks.part(p.grad)
            held += values.view_as(held)

    @property
    def _sizes(self) -> list[int]:
        return [ranks.part(p.detach()).numel() for p in self.places]
