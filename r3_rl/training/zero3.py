"""DeepSpeed's ZeRO 3: the weights of the decoder's layers in shards too. What keeps the processes in step is in
`passes.py`; every pass through the decoder is a micro-batch to DeepSpeed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from r3_rl import joining, ranks
from r3_rl.policy.base import Layered, Policy
from r3_rl.training.config import R3Config
from r3_rl.training.parts import Rest
from r3_rl.training.passes import PassingLearner
from r3_rl.training.zero import engine_settings, load_engine, package, save_engine, saved_bytes


class _Held(nn.Module):
    """The layers as DeepSpeed is handed them. It is called with the scalar of each backward pass, which is where
    DeepSpeed counts micro-batches."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, loss: Tensor) -> Tensor:
        return loss


class ZeRO3Learner(PassingLearner):
    """ZeRO 3: the weights of the decoder's layers in shards, with masters and moments.

    What the optimiser steps is DeepSpeed's; `names` holds stand-ins, whose gradients are in shards as DeepSpeed cuts
    them: this is where gradients are measured, combined and clipped. What nobody learned from is stepped with a
    gradient of zero, as in stages 1 and 2.

    Args:
        policy: full weights are trained, in its layers only.
        layered: its layers.
        args: of the run.

    Raises MissingPackageError without DeepSpeed, InputError for settings that cannot be kept.
    """

    any_count = False

    def __init__(self, policy: Policy, layered: Layered, args: R3Config) -> None:
        settings = engine_settings(args)
        super().__init__(policy, layered, args)
        joining.join_alone()
        self._gathered = ExitStack()
        self.trained = list(self.names)
        """The weights, which are whole between updates."""
        for parameter in self.trained:
            ranks.share_first(parameter.detach())
        self._watch()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        mesh = init_device_mesh(device, (ranks.count(),))
        if args.beta or args.image_beta:
            self._base = [_shard(_own_part(p.detach().flatten()).clone(), p.numel(), mesh) for p in self.trained]
        stand_ins = [_shard(_own_part(_nothing(p)), p.numel(), mesh) for p in self.trained]
        self.optimizer = self._optimizer()
        deepspeed = package()
        held = _Held(layered.layers)
        deepspeed.utils.set_z3_leaf_modules(held, list({type(layer) for layer in layered.layers}))
        self.engine, *_ = deepspeed.initialize(
            model=held, model_parameters=self.trained, optimizer=self.optimizer, config=settings
        )
        self.names = dict(zip(map(nn.Parameter, stand_ins), self.names.values(), strict=True))
        self.gather()

    def gather(self) -> None:
        """Every process's weights become whole, and those of the masters. All processes call it."""
        if self._whole:
            return
        self._gathered.close()
        self._gathered.enter_context(package().zero.unwrap_model_for_generation(self.engine))
        self._whole = True

    def over_parts(self, values: Tensor) -> Tensor:
        """Of numbers that every shard has a share of: their sum."""
        return ranks.add_up(values)

    def step(self, norm: Tensor) -> None:
        """DeepSpeed clips, steps and cuts the weights, which are gathered then."""
        utils = package().utils
        for weight, stand_in in zip(self.trained, self.names, strict=True):
            kept = torch.zeros(-(-stand_in.numel() // ranks.count()), device=weight.device)
            if stand_in.grad is not None:
                own = ranks.part(stand_in.grad)
                kept[: len(own)] = own
            utils.safe_set_local_grad(weight, kept)
        self.engine.set_gradient_accumulation_boundary(is_boundary=True)
        self.engine.step()
        self.scheduler.step()
        self.zero_grad()
        self.gather()

    def saved_bytes(self) -> int:
        """About how much `save` writes, over all processes: the weights, masters and moments."""
        return saved_bytes(self)

    def save(self, folder: Path) -> Rest:
        """Every process's shard, in DeepSpeed's layout, and the schedule."""
        self._scatter()
        save_engine(self, folder)
        self.gather()
        return None

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote. Raises CheckpointError when DeepSpeed finds nothing."""
        self._scatter()
        load_engine(self, folder)
        self.gather()

    def _scatter(self) -> None:
        self._gathered.close()
        self._whole = False
        self.engine.optimizer.zero_grad()  # the next backward pass is the first of its update

    def _send(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor], *, first: bool, last: bool) -> None:
        terms = [(output.float() * gradient.float()).sum() for output, gradient in zip(outputs, gradients, strict=True)]
        self.engine.set_gradient_accumulation_boundary(is_boundary=last)
        self.engine.backward(self.engine(torch.stack(terms).sum()), scale_wrt_gas=False)

    def _collect(self) -> None:
        utils, count = package().utils, ranks.count()
        for weight, stand_in in zip(self.trained, self.names, strict=True):
            size = ranks.part(stand_in.detach()).numel()
            # DeepSpeed divides by the number of processes; losses are divided by the sizes of the whole step
            found = count * utils.safe_get_local_grad(weight)[:size]
            gradient = _shard(found, stand_in.numel(), stand_in.device_mesh)
            stand_in.grad = gradient if stand_in.grad is None else stand_in.grad + gradient


def _own_part(flat: Tensor) -> Tensor:
    """This process's part of [N] numbers, as DeepSpeed and DTensor cut them; the last ones may have fewer, or none."""
    size = -(-len(flat) // ranks.count())
    return flat[ranks.rank() * size : (ranks.rank() + 1) * size]


def _nothing(like: Tensor) -> Tensor:
    """As many float32 zeros, flat, that take no memory."""
    return torch.zeros((), device=like.device).expand(like.numel())


def _shard(own: Tensor, size: int, mesh: DeviceMesh) -> Tensor:
    """One's own part of [size] numbers as the whole."""
    return DTensor.from_local(own, mesh, [Shard(0)], run_check=False, shape=torch.Size([size]), stride=(1,))
