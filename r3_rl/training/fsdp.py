"""Weights in shards, by torch's FSDP2; every call to it is in this file. What keeps the processes in step is in
`passes.py`. Adapters are whole in every process beside a base in shards."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from r3_rl import joining, ranks
from r3_rl.errors import InputError, MissingPackageError
from r3_rl.policy.adapters import adapted_layers
from r3_rl.policy.base import Layered, Policy
from r3_rl.training.config import R3Config
from r3_rl.training.passes import PassingLearner

OLDEST = "torch 2.13"
"""Before it a layer whose experts are not all used in every process could not be sharded."""


class FSDPLearner(PassingLearner):
    """The decoder's layers in shards: what is trained of them with its moments, or the frozen base of an adapter.
    What nobody learned from has no gradient, as in one process.

    Args:
        policy: what is trained of it requires gradient, in its layers only or in an adapter. Trained weights of 16 bits
            get float32 masters, in shards.
        layered: its layers.
        args: of the run.

    Raises InputError for a number of processes that does not divide into the copies.
    """

    def __init__(self, policy: Policy, layered: Layered, args: R3Config) -> None:
        root: Any = layered
        self.replicate = args.replicate
        dtype = next(root.layers.parameters()).dtype
        self.root = _sharded(root, args, adapted=bool(adapted_layers(policy.module)))
        super().__init__(policy, layered, args)
        self.layers: list[Any] = list(root.layers)
        self.keep_gathered = args.keep_gathered
        trained = list(self.names) if self.in_parts and (args.beta or args.image_beta) else []
        self._base = [p.detach().to(dtype, copy=True) for p in trained]
        self._ran = False
        self.gather()
        self._watch()  # the gathered ones, which are the same every time

    def gather(self) -> None:
        """Every process's weights become whole, and those of the masters. All processes call it."""
        if self._whole:
            return
        self.root.set_reshard_after_forward(False)
        for layer in self.layers:
            layer.reshard()
            layer.unshard()
        self._whole = True

    def over_parts(self, values: Tensor) -> Tensor:
        """Of numbers that every shard has a share of: their sum."""
        return ranks.add_up(values) / self.replicate

    def _scatter(self) -> None:
        """Back to shards; passes without gradient leave marks behind that the next backward pass would trip over."""
        if self._ran:
            self.root.reset_iter_state()
        for layer in self.layers:
            layer.reshard()
        self.root.set_reshard_after_forward(not self.keep_gathered)
        self.root.set_reshard_after_backward(not self.keep_gathered)
        self._whole = self._ran = False

    def _send(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor], *, first: bool, last: bool) -> None:
        self.root.set_is_last_backward(first)
        self.root.set_requires_all_reduce(last)
        torch.autograd.backward(outputs, gradients)

    def _begin_pass(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        self._ran = True
        return super()._begin_pass(module, arguments)


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
