"""LoRA by task: the one layer that PEFT lacks, whose tokens take the adapters of their own task in one pass.

    split:   W_k x = W x + s B_k A_k x
    routed:  W_k x = W x + s (B_0 A_0 + sum_j g_kj B_j A_j) x,   g_k = softmax(z_k / temperature)

k, j are tasks (the stages of the loop), 0 is the part that all share, and z [tasks, tasks] is learned in every layer.
A gate asks for the task and nothing else, so what a task adds to W is one plain LoRA (`RoutedLinear.factors`): the
ranks side by side, the gate multiplied in. PEFT holds the parts, as adapters of those names.

All B start at zero, so a fresh adapter changes nothing, and its shared part is what plain LoRA of the same seed would
be. Shapes: T tasks, P parts, R rank of all parts, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from r3_rl.errors import InputError
from r3_rl.policy.linear import linear
from r3_rl.policy.lora import AdaptedLinear, Kind
from r3_rl.recipe.base import default
from r3_rl.recipe.running import BalanceSection
from r3_rl.types import STAGES

Runs = tuple[tuple[str, int], ...]
"""Neighbouring tokens of one task: (task, how many), in order; empty where no adapter is routed."""
SHARED = "shared"
"""Name of the part that every task has."""
GATE = "lora_gate"
"""Name of a gate among a layer's parameters."""
OWN = 1.0
"""z_kk at the start, all others being 0: at temperature 1 a task has 40 % of its own part and 15 % of each other's."""


@dataclass(frozen=True, kw_only=True)
class Routing:
    """How tasks share an adapter.

    >>> Routing(kind="split").parts
    ('plan', 'draft', 'critique', 'refinement', 'answer')
    """

    kind: Kind
    gate_temperature: float = default(BalanceSection, "gate_temperature")
    """> 0, of the gates: near 0 each task has its own part, far above 1 all have the same mixture."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The adapters of a layer by name, P of them."""
        return STAGES if self.kind == "split" else (SHARED, *STAGES)


class RoutedLinear(AdaptedLinear):
    """A layer whose tokens take the adapters of their tasks. `route` is called once, when PEFT has put the parts in."""

    routing: Routing
    totals: dict[str, Tensor] | None = None
    """Inside `summed` the sums of the tasks that came so far; None while the parts stand beside the weights."""

    def route(self, routing: Routing, *, frozen: bool) -> None:
        """Makes all parts active, and the gate. frozen: none of them is trained."""
        self.routing = routing
        self.set_adapter(list(routing.parts), inference_mode=frozen)
        if routing.kind == "routed":
            start = OWN * torch.eye(len(STAGES), device=self._a(SHARED).device)
            self.register_parameter(GATE, nn.Parameter(start, requires_grad=not frozen))

    def gates(self) -> Tensor:
        """g float32 [T, T], a row a task, which adds up to 1, with gradient; of a split layer the identity."""
        if self.routing.kind == "split":
            return torch.eye(len(STAGES))
        gate: Tensor = self.get_parameter(GATE)
        return (gate / self.routing.gate_temperature).softmax(-1)

    def factors(self, task: str) -> tuple[Tensor, Tensor]:
        """A [R, in] and B [out, R] of the plain LoRA that a task amounts to, with gradient."""
        if self.routing.kind == "split":
            return self._a(task), self._b(task)
        gate = self.gates()[STAGES.index(task)]
        own = [self._b(part) * g for part, g in zip(STAGES, gate, strict=True)]
        return torch.cat([self._a(part) for part in self.routing.parts]), torch.cat([self._b(SHARED), *own], 1)

    @property
    def scale(self) -> float:
        """What B A is multiplied by, the same for all parts."""
        return float(self.scaling[self.routing.parts[0]])

    @property
    def has_dropout(self) -> bool:
        """As in `AdaptedLinear`; all parts drop the same."""
        return isinstance(self._dropout, nn.Dropout)

    @contextmanager
    def summed(self) -> Iterator[None]:
        """As in `AdaptedLinear`, with a sum for every task that comes: at most T copies of W."""
        before, self.totals = self.totals, {}
        try:
            yield
        finally:
            self.totals = before

    def plain_weight(self, task: str) -> Tensor | None:
        """As in `AdaptedLinear`: the sum of the task."""
        if self.disable_adapters:
            return self.base_layer.weight  # type: ignore[no-any-return]
        return None if self.totals is None else self._total(task, *self.factors(task))

    def forward(self, x: Tensor, runs: Runs = (), *args: Any, **kwargs: Any) -> Tensor:
        """x [N, in], tokens in the order of `runs`, which cover them -> [N, out]."""
        if self.disable_adapters:
            return self.base_layer(x)  # type: ignore[no-any-return]
        assert sum(count for _, count in runs) == x.shape[0], "a routed layer is told the task of every token"
        pieces = x.split([count for _, count in runs]) if len(runs) > 1 else (x,)
        own = [self._of_task(task, piece) for (task, _), piece in zip(runs, pieces, strict=True)]
        found = torch.cat(own) if len(own) > 1 else own[0]
        return found if self.totals is not None else (self.base_layer(x) + found).to(x.dtype)

    def _of_task(self, task: str, x: Tensor) -> Tensor:
        """Of tokens of one task: W_k x on the sums, else what their parts add to W x."""
        a, b = self.factors(task)
        if self.totals is None:
            return linear(linear(self._dropout(x.to(a.dtype)), a), b) * self.scale
        return self.on_sum(x, a, b, self._total(task, a, b), self.scale)

    def _total(self, task: str, a: Tensor, b: Tensor) -> Tensor:
        assert self.totals is not None
        if task not in self.totals:
            weight = self.base_layer.weight
            with torch.no_grad():
                self.totals[task] = torch.addmm(weight.float(), b, a, alpha=self.scale).to(weight.dtype)
        return self.totals[task]

    def _a(self, part: str) -> Tensor:
        return self.lora_A[part].weight  # type: ignore[no-any-return]

    def _b(self, part: str) -> Tensor:
        return self.lora_B[part].weight  # type: ignore[no-any-return]

    @property
    def _dropout(self) -> nn.Module:
        return self.lora_dropout[self.routing.parts[0]]  # type: ignore[no-any-return]


def through(layer: nn.Module, x: Tensor, runs: Runs) -> Tensor:
    """Tokens x [N, ...] through a layer, which is told their tasks if it asks for them."""
    return layer(x, runs) if isinstance(layer, RoutedLinear) else layer(x)  # type: ignore[no-any-return]


def routed_layers(module: nn.Module) -> dict[str, RoutedLinear]:
    """The module's routed layers by name, in order; empty without."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, RoutedLinear)}


def routing_of(module: nn.Module) -> Routing | None:
    """How the module's adapter is routed; None for plain LoRA and without an adapter."""
    # asked at every pass: a module without adapter answers at once, else its first adapted layer does
    if not hasattr(module, "peft_config"):
        return None
    layer = next((layer for layer in module.modules() if isinstance(layer, AdaptedLinear)), None)
    return layer.routing if isinstance(layer, RoutedLinear) else None


def told(module: nn.Module, tasks: Sequence[str]) -> list[str]:
    """What rows of these tasks are read by: their tasks where the module's adapter is routed, else all alike.

    Raises InputError where it is routed and a row has none of the tasks.

    >>> told(nn.Linear(2, 2), ["plan", ""])
    ['', '']
    """
    if routing_of(module) is None:
        return [""] * len(tasks)
    for task in tasks:
        if task not in STAGES:
            raise InputError(
                f"an adapter that is routed by task was asked for {repr(task) if task else 'no task'}",
                hint=f"say one of {', '.join(STAGES)} (Sampling.task, Drawing.task)",
            )
    return list(tasks)


def runs_of(tasks: Sequence[str], rows: Sequence[int] | np.ndarray) -> Runs:
    """Neighbouring tokens of one task; rows: [N], the row of each token; tasks: of the rows, empty where unrouted.

    >>> runs_of(["plan", "draft", "draft"], [0, 0, 1, 2, 0])
    (('plan', 2), ('draft', 2), ('plan', 1))
    >>> runs_of(["", ""], [0, 1])
    ()
    """
    if not any(tasks) or not len(rows):
        return ()
    number = np.array([STAGES.index(task) for task in tasks])[np.asarray(rows)]
    ends = [*(np.flatnonzero(np.diff(number)) + 1).tolist(), len(number)]
    return tuple((STAGES[number[begin]], end - begin) for begin, end in zip([0, *ends[:-1]], ends, strict=True))
