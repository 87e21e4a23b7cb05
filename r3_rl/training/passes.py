"""Weights that are in shards during an update: what keeps the processes' passes through the decoder in step.

Between updates each process holds the decoder's weights gathered, so whoever samples waits for nobody: rollouts, the
gallery, measurements. In an update a layer is gathered when it runs, by all processes together. They learn from
different things, so three rules keep them in step:

* Whether one more pass runs is agreed on before it does. A process that has none left runs a dummy.
* A pass is a graph of its own, cut at the outputs of the decoder, and the last one goes backward first. In one graph
  a layer's gradient would wait for all passes, and nothing could be sent.
* Every pass goes backward through every layer, and an expert without tokens sends zeros.

The rest of the model (tower, embeddings, head) is whole in every process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from r3_rl import ranks
from r3_rl.policy.base import Layered, Policy
from r3_rl.training.batcher import Batcher
from r3_rl.training.config import R3Config
from r3_rl.training.parallel import Learner
from r3_rl.training.parts import Rest

Cuts = list[tuple[Tensor, Tensor]]
"""Outputs of a pass, each with the leaf that took its place."""


class PassingLearner(Learner, ABC):
    """The decoder's layers in shards; which library holds them is the children's.

    Args:
        policy: what is trained of it requires gradient, in its layers only or in an adapter.
        layered: its layers.
        args: of the run.
    """

    gathers = True

    def __init__(self, policy: Policy, layered: Layered, args: R3Config) -> None:
        super().__init__(policy, args)
        root: Any = layered
        self.in_parts = not self.adapted
        self._base: list[Tensor] = []
        """The weights before training, in shards of their own type, in the order of the module; empty without a KL
        term."""
        self._whole = self._open = self._idle = False
        self._passes: list[tuple[bool, Cuts]] = []
        self._left = 0
        self._touched: set[str] = set()
        root.register_forward_pre_hook(self._begin_pass)
        root.register_forward_hook(self._end_pass)

    def _watch(self) -> None:
        """Remembers from now on which weights a pass that counts has reached; they are whole."""
        for name, p in self.policy.module.named_parameters() if self.in_parts else ():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(partial(self._touch, name))

    @abstractmethod
    def _scatter(self) -> None:
        """Back to shards."""

    @abstractmethod
    def _send(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor], *, first: bool, last: bool) -> None:
        """The backward pass of one pass. first: through the decoder in its micro-batch; last: of the whole update."""

    def _collect(self) -> None:
        """Leaves the gradient that all passes made in what the optimiser steps."""

    @contextmanager
    def base(self, batcher: Batcher) -> Iterator[None]:
        """Inside, weights are whole; those of the base, where a KL term asks for it. All processes enter."""
        self.gather()
        _make_dummies(batcher)
        with self._reference() if self._base else nullcontext():
            yield

    @contextmanager
    def _reference(self) -> Iterator[None]:
        gathered = [p for p in self.policy.module.parameters() if p.requires_grad]
        for weight, base in zip(gathered, self._base, strict=True):
            weight.data.copy_(ranks.whole(base).view_as(weight))
        try:
            with self.policy.base_restored():
                yield
        finally:
            self._whole = False  # the masters' come with the next gathering

    @contextmanager
    def collecting(self, count: int, batcher: Batcher) -> Iterator[None]:
        """Around the passes of `count` micro-batches, as many in every process. At the end the gradients are in the
        shards, added up over the processes."""
        _make_dummies(batcher)
        self._scatter()
        self._left, self._open = count, True
        self._dummy: Callable[[], Tensor] = partial(_dummy, self.policy, batcher)
        try:
            yield
        finally:
            self._open = False
            self._passes.clear()
        self._collect()
        self._forget_untouched()

    def backward(self, loss: Tensor) -> None:
        """The backward pass of a micro-batch: of what follows the decoder, then of its passes, the last one first."""
        self._idle = True
        while self._agree(working=False):
            loss = loss + 0.0 * self._dummy()
        self._left -= 1
        loss.backward()
        while self._passes:
            self._idle, outputs = self._passes.pop()
            found = [(output, leaf.grad) for output, leaf in outputs if leaf.grad is not None]
            found = found or [(output, torch.zeros_like(output)) for output, _ in outputs[:1]]
            first = not self._passes
            self._send([o for o, _ in found], [g for _, g in found], first=first, last=first and not self._left)
        self._idle = False

    def idle(self) -> None:
        """A micro-batch with nothing in it: dummies, as many as another process has passes."""
        self.backward(torch.zeros((), requires_grad=True))

    def step(self, norm: Tensor) -> None:
        """Steps the shards, then gathers the weights."""
        super().step(norm)
        self.gather()

    def zero_grad(self) -> None:
        """Forgets the gradient."""
        super().zero_grad()
        self._touched.clear()

    def save(self, folder: Path) -> Rest:
        """What the moments and masters are, from shards."""
        self._scatter()
        rest = super().save(folder)
        self.gather()
        return rest

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote."""
        self._scatter()
        super().load(folder)
        self.gather()

    def _begin_pass(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self._open:
            return None
        if not self._idle:
            self._agree(working=True)
        embedded, *others = arguments
        # or a pass through nothing that is trained would have no backward pass
        return (embedded.detach().requires_grad_(), *others)

    def _end_pass(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        if not self._open:
            return None
        pairs: Cuts = []
        cut = _cut(output, pairs)
        self._passes.append((self._idle, pairs))
        return cut

    def _agree(self, *, working: bool) -> bool:
        """Whether any process has a pass to run now."""
        return bool(ranks.add_up(torch.tensor(float(working))))

    def _touch(self, name: str, parameter: nn.Parameter) -> None:
        if not self._idle:
            self._touched.add(name)

    def _forget_untouched(self) -> None:
        if not self.in_parts:
            return
        touched = ranks.add_up(torch.tensor([float(name in self._touched) for name in self.names.values()]))
        for parameter, number in zip(self.names, touched.tolist(), strict=True):
            if not number:
                parameter.grad = None


def _cut(value: Any, pairs: Cuts) -> Any:
    """The same with a leaf in place of each tensor that requires gradient; (tensor, leaf) are added to the pairs."""
    if isinstance(value, Tensor):
        if not value.requires_grad:
            return value
        pairs.append((value, value.detach().requires_grad_()))
        return pairs[-1][1]
    if isinstance(value, list):
        return [_cut(item, pairs) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _cut(getattr(value, f.name), pairs) for f in fields(value)})
    return value


def _make_dummies(batcher: Batcher) -> None:
    """They are sampled, once, while the weights are whole."""
    for objective in ("understanding", "generation"):
        batcher.dummies[objective, ""]


def _dummy(policy: Policy, batcher: Batcher) -> Tensor:
    """A pass over two words."""
    (found,) = policy.replay([batcher.dummies["understanding", ""].segment])
    return found.log_probs.sum()
