"""Full weights over several GPUs: what trains them lies in shards, one in every process.

A process holds the weights whole, in the type they compute in, since rollouts and passes of processes are unlike. Of
each weight's float32 master, gradient, moments and base it holds a part. A whole gradient is never held either: a
backward pass hands each layer's over, and it leaves for the parts when the next layer's arrives.

Passes are unlike in number and kind, so a collective belongs to no pass: processes send their layers round by round,
last layer first, always in this order. Whoever has nothing for a layer adds nothing; whoever is through joins in until
all are. A gradient that arrives out of turn waits for the layer's next turn: only its memory depends on the order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from r3_rl import ranks
from r3_rl.errors import CheckpointError, InputError, RunError
from r3_rl.policy.base import Layered, Policy


@dataclass(kw_only=True, eq=False)
class _Shard:
    """A trained weight."""

    weight: nn.Parameter
    """Whole."""
    master: nn.Parameter
    """float32 [ceil(elements / parts)]: this process's part, zeros behind the end; what the optimiser steps."""
    waiting: Tensor | None = None
    """Gradient of the weight that was not sent yet."""


class Shards:
    """The trained weights of a decoder's layers, cut into parts.

    Args:
        module: of the policy.
        layered: its layers, which hold everything that is trained; None for a backbone that has none to offer.
        parts: as many as there are processes; a single process with more is one of them and rehearses (what the
            others would send is missing).
        keep_base: for `reference`.

    Raises InputError where something else is trained, or nothing can be sharded.
    """

    def __init__(self, module: nn.Module, layered: Layered | None, *, parts: int, keep_base: bool) -> None:
        if layered is None:
            raise InputError("this backbone's layers cannot be sharded", hint="leave optimizer_parts out")
        self.decoder, self.parts = layered, parts
        self.layers: list[list[_Shard]] = []
        for layer in self.decoder.layers:
            trained = [p for p in layer.parameters() if p.requires_grad]
            self.layers.append([_Shard(weight=p, master=nn.Parameter(self._part(p).float())) for p in trained])
        self.base = [self._part(s.weight) for s in self._all()] if keep_base else []
        self.masters = {s.weight: s.master for s in self._all()}
        if set(self.masters) != {p for p in module.parameters() if p.requires_grad}:
            raise InputError("the optimiser is sharded over the decoder's layers, and more than them is trained")
        self._number = {layer: i for i, layer in enumerate(self.decoder.layers)}
        self._turn = self._last = len(self.layers) - 1

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Inside, gradients go to the masters; at the end they are those of all processes. Every process enters."""
        self.decoder.call = self._call
        try:
            yield
            self._finish()
        finally:
            self.decoder.call = nn.Module.__call__

    @contextmanager
    def reference(self, policy: Policy) -> Iterator[None]:
        """Inside, the policy is its base: the weights are those before training. Every process enters.

        Raises RunError when the base was not kept.
        """
        if not self.base:
            raise RunError("the base of the sharded weights was not kept", hint="set keep_base")
        for s, base in zip(self._all(), self.base, strict=True):
            self._write(s.weight, base)
        with policy.base_restored():
            yield
        self.publish()

    def publish(self) -> None:
        """Writes the masters into the weights. Every process calls it."""
        for s in self._all():
            self._write(s.weight, s.master.detach())

    def zero_grad(self) -> None:
        """Forgets the gradient."""
        for s in self._all():
            s.master.grad = None

    def norm(self) -> Tensor:
        """Of the whole gradient."""
        own = torch.nn.utils.get_total_norm([s.master.grad for s in self._all() if s.master.grad is not None])
        return ranks.add_up(own.square()).sqrt() if ranks.count() > 1 else own

    def save(self, folder: Path) -> None:
        """This process's masters, beside the whole weights."""
        save_file({name: m.detach() for name, m in self._named()}, folder / f"masters_{ranks.rank()}.safetensors")

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote. Raises CheckpointError for a run that was not sharded like this one."""
        path = folder / f"masters_{ranks.rank()}.safetensors"
        stored = load_file(path) if path.is_file() else {}
        named = dict(self._named())
        if {n: t.shape for n, t in stored.items()} != {n: m.shape for n, m in named.items()}:
            raise CheckpointError(f"{folder} was not saved with training.shard_optimizer by as many processes")
        with torch.no_grad():
            for name, master in named.items():
                master.copy_(stored[name])

    def _all(self) -> Iterator[_Shard]:
        return (s for layer in self.layers for s in layer)

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((f"{i}.{j}", s.master) for i, layer in enumerate(self.layers) for j, s in enumerate(layer))

    def _part(self, weight: Tensor) -> Tensor:
        return self._padded(weight.detach()).chunk(self.parts)[ranks.rank()].clone()

    def _padded(self, whole: Tensor) -> Tensor:
        flat = whole.flatten()
        missing = -flat.numel() % self.parts
        return nn.functional.pad(flat, (0, missing)) if missing else flat

    def _write(self, weight: nn.Parameter, part: Tensor) -> None:
        whole = torch.empty(part.numel() * self.parts, dtype=weight.dtype, device=weight.device)
        pieces = list(whole.chunk(self.parts))
        if ranks.count() < self.parts:  # a rehearsal: the other parts stay what they are
            whole = self._padded(weight.detach()).clone()
            whole.chunk(self.parts)[ranks.rank()].copy_(part)
        else:
            ranks.collect(pieces, part.to(weight.dtype))
        weight.data.copy_(whole[: weight.numel()].view_as(weight))

    def _call(self, layer: nn.Module, *arguments: Any) -> Any:
        """A layer, with weights that hand their gradient over in this very pass: a leaf of the graph would wait for
        the gradients of all passes."""
        if not torch.is_grad_enabled():
            return layer(*arguments)
        number = self._number[layer]
        trained = [(name, p) for name, p in layer.named_parameters() if p.requires_grad]
        taps = {name: _Tap.apply(p, self, number, s) for (name, p), s in zip(trained, self.layers[number], strict=True)}
        return torch.func.functional_call(layer, taps, arguments)

    def _take(self, number: int, shard: _Shard, gradient: Tensor) -> None:
        while self._turn != number:
            self._send(working=True)
        shard.waiting = gradient if shard.waiting is None else shard.waiting + gradient

    def _finish(self) -> None:
        while self._turn != self._last or any(s.waiting is not None for s in self._all()):
            self._send(working=True)
        while self._send(working=False) or self._turn != self._last:
            pass

    def _send(self, *, working: bool) -> bool:
        """One turn: this layer's gradients are added up into the parts. Says whether a new round begins at all: where
        nobody is working before its first turn, it does not."""
        layer = self.layers[self._turn]
        there = torch.tensor([float(working), *(float(s.waiting is not None) for s in layer)])
        anybody, *touched = ranks.add_up(there).tolist()
        if self._turn == self._last and not anybody:
            return False
        for s, number in zip(layer, touched, strict=True):
            if number:  # what nobody touched keeps no gradient, as in one process
                part = self._added_up(s)
                s.master.grad = part if s.master.grad is None else s.master.grad.add_(part)
        self._turn = self._turn - 1 if self._turn else self._last
        return True

    def _added_up(self, shard: _Shard) -> Tensor:
        whole, shard.waiting = torch.zeros_like(shard.weight) if shard.waiting is None else shard.waiting, None
        pieces = list(self._padded(whole.float()).chunk(self.parts))
        if ranks.count() < self.parts:
            return pieces[ranks.rank()].clone()
        return ranks.add_up_parts(pieces)


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, shards: Shards, number: int, shard: _Shard) -> Tensor:
        ctx.place = (shards, number, shard)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[None, None, None, None]:
        shards, number, shard = ctx.place
        shards._take(number, shard, gradient[0])
        return None, None, None, None
