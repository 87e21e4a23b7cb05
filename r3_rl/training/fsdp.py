"""Weights in shards, by torch's FSDP2; every call to it is in this file.

Between updates each process holds the decoder's weights gathered, so whoever samples waits for nobody: rollouts, the
gallery, measurements. In an update a layer is gathered when it runs. Processes learn from different things, so three
rules keep their collectives in step:

* Whether one more pass runs is agreed on before it does. A process that has none left runs a dummy.
* A pass is a graph of its own, cut at the outputs of the decoder, and the last one goes backward first. In one graph
  a layer's gradient would wait for all passes, and nothing could be sent.
* Every pass goes backward through every layer, and an expert without tokens sends zeros. What nobody learned from has
  no gradient afterwards, as in one process.

The rest of the model (tower, embeddings, head) and adapters are whole in every process.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from r3_rl import joining, ranks
from r3_rl.errors import InputError, MissingPackageError
from r3_rl.policy.adapters import adapted_layers
from r3_rl.policy.base import Layered, Policy
from r3_rl.training.batcher import Batcher
from r3_rl.training.config import R3Config
from r3_rl.training.parallel import Learner

OLDEST = "torch 2.13"
"""Before it a layer whose experts are not all used in every process could not be sharded."""


class FSDPLearner(Learner):
    """The decoder's layers in shards: what is trained of them with its moments, or the frozen base of an adapter.

    Args:
        policy: what is trained of it requires gradient, in its layers only or in an adapter. Trained weights of 16 bits
            get float32 masters, in shards.
        layered: its layers.
        args: of the run.

    Raises InputError for a number of processes that does not divide into the copies.
    """

    gathers = True

    def __init__(self, policy: Policy, layered: Layered, args: R3Config) -> None:
        root: Any = layered
        adapted = bool(adapted_layers(policy.module))
        self.replicate = args.replicate
        dtype = next(root.layers.parameters()).dtype
        self.root = _sharded(root, args, adapted=adapted)
        super().__init__(policy, args)
        self.layers: list[Any] = list(root.layers)
        self.in_parts = not adapted
        self.keep_gathered = args.keep_gathered
        trained = list(self.names) if self.in_parts and (args.beta or args.image_beta) else []
        self._base = [p.detach().to(dtype, copy=True) for p in trained]
        self._whole = self._ran = self._open = self._idle = False
        self._passes: list[tuple[bool, list[tuple[Tensor, Tensor]]]] = []
        self._left = 0
        self._touched: set[str] = set()
        root.register_forward_pre_hook(self._begin_pass)
        root.register_forward_hook(self._end_pass)
        self.gather()
        for name, p in policy.module.named_parameters() if self.in_parts else ():
            if p.requires_grad:  # the gathered one, which is the same every time
                p.register_post_accumulate_grad_hook(partial(self._touch, name))

    def gather(self) -> None:
        """Every process's weights become whole, and those of the masters. All processes call it."""
        if self._whole:
            return
        self.root.set_reshard_after_forward(False)
        for layer in self.layers:
            layer.reshard()
            layer.unshard()
        self._whole = True

    @contextmanager
    def base(self, batcher: Batcher) -> Iterator[None]:
        """Inside, weights are whole; those of the base, where a KL term asks for it. All processes enter."""
        self.gather()
        for objective in ("understanding", "generation"):  # sampled while the weights are whole
            batcher.dummies[objective, ""]
        with self._reference() if self._base else nullcontext():
            yield

    @contextmanager
    def _reference(self) -> Iterator[None]:
        gathered = [p for p in self.policy.module.parameters() if p.requires_grad]
        with torch.no_grad():
            for weight, base in zip(gathered, self._base, strict=True):
                weight.copy_(ranks.whole(base))
        try:
            with self.policy.base_restored():
                yield
        finally:
            self._whole = False  # the masters' come with the next gathering

    @contextmanager
    def collecting(self, count: int, batcher: Batcher) -> Iterator[None]:
        """Around the passes of `count` micro-batches, as many in every process. At the end the gradients are in the
        shards, added up over the processes."""
        self._scatter()
        self._left, self._open = count, True
        self._dummy: Callable[[], Tensor] = partial(_dummy, self.policy, batcher)
        try:
            yield
        finally:
            self._open = False
            self._passes.clear()
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
            first = not self._passes
            self.root.set_is_last_backward(first)
            self.root.set_requires_all_reduce(first and not self._left)
            found = [(output, leaf.grad) for output, leaf in outputs if leaf.grad is not None]
            found = found or [(output, torch.zeros_like(output)) for output, _ in outputs[:1]]
            torch.autograd.backward([o for o, _ in found], [g for _, g in found])
        self._idle = False

    def step(self, norm: Tensor) -> None:
        """Steps the shards, then gathers the weights."""
        super().step(norm)
        self.gather()

    def zero_grad(self) -> None:
        """Forgets the gradient."""
        super().zero_grad()
        self._touched.clear()

    def over_parts(self, values: Tensor) -> Tensor:
        """Of numbers that every shard has a share of: their sum."""
        return ranks.add_up(values) / self.replicate

    def save(self, folder: Path) -> None:
        """What `Learner.save` does, from shards."""
        self._scatter()
        super().save(folder)
        self.gather()

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote, in this or another number of processes."""
        self._scatter()
        super().load(folder)
        self.gather()

    def _scatter(self) -> None:
        """Back to shards; passes without gradient leave marks behind that the next backward pass would trip over."""
        if self._ran:
            self.root.reset_iter_state()
        for layer in self.layers:
            layer.reshard()
        self.root.set_reshard_after_forward(not self.keep_gathered)
        self.root.set_reshard_after_backward(not self.keep_gathered)
        self._whole = self._ran = False

    def _begin_pass(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        self._ran = True
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
        pairs: list[tuple[Tensor, Tensor]] = []
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


def _sharded(root: nn.Module, args: R3Config, *, adapted: bool) -> Any:
    """The decoder, its layers in shards; the policy of types is FSDP2's."""
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise MissingPackageError(f"training.parallel.kind fsdp2 needs {OLDEST}", hint="pip install -U torch")
    joining.join_alone()
    # a layer's keys and values are views, and nobody writes into them
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    replicate, count = args.replicate, ranks.count()
    if count % replicate:
        raise InputError(
            f"{count} processes do not divide into {replicate} copies", hint="set training.parallel.replicate"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    copies: dict[str, int] = {"replicate": replicate} if replicate > 1 else {}
    sizes = {**copies, "shard": count // replicate}
    mesh = init_device_mesh(device, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    layers: Any = root.layers
    for layer in layers:
        types = MixedPrecisionPolicy(cast_forward_inputs=False)
        if not adapted and (dtype := next(layer.parameters()).dtype) != torch.float32:
            layer.float()
            reduced = getattr(torch, args.reduce_dtype)
            types = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=reduced, cast_forward_inputs=False)
        whole = {p for p in layer.parameters() if adapted and p.requires_grad}
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, mp_policy=types, ignored_params=whole)
    inside = {p for layer in layers for p in layer.parameters()}
    sharded: Any = fully_shard(root, mesh=mesh, ignored_params={p for p in root.parameters() if p not in inside})
    for module in (*layers, sharded):
        module.set_gradient_divide_factor(1.0)  # losses are divided by the sizes of the whole step
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    sharded.set_reduce_scatter_unused_params(True)
    return sharded


def _cut(value: Any, pairs: list[tuple[Tensor, Tensor]]) -> Any:
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


def _dummy(policy: Policy, batcher: Batcher) -> Tensor:
    """A pass over two words."""
    (found,) = policy.replay([batcher.dummies["understanding", ""].segment])
    return found.log_probs.sum()
