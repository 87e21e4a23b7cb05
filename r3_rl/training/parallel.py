"""How what is trained is held and stepped: whole in every process. Shards are in `passes.py`, `fsdp.py` and `zero.py`.

Processes roll out different things, so a gradient is accumulated first and added up over the processes afterwards, once
a step; no wrapper's hooks act in a backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from r3_rl import ranks
from r3_rl.balance.progressive import Progressive, begun_anew
from r3_rl.errors import CheckpointError, InputError
from r3_rl.observe.memory import free_bytes
from r3_rl.policy.adapters import adapted_layers, adapter_merged
from r3_rl.policy.backbone import GENERATION, branch_of
from r3_rl.policy.base import Policy
from r3_rl.policy.routing import GATE
from r3_rl.training.batcher import Batcher
from r3_rl.training.config import R3Config
from r3_rl.training.optimizer import course_of, ending_in_time, make_optimizer, set_rate, total_norm
from r3_rl.training.parts import Rest, load_parts, parts_bytes, save_parts

OPTIMIZER, SCHEDULE = "optimizer.pt", "schedule.pt"
"""Files of a checkpoint: an adapter's optimiser and schedule; the schedule of full weights."""


class Learner:
    """The trained weights, whole in every process: all processes add up their gradients and take the same step.

    Args:
        policy: what is trained of it requires gradient.
        args: of the run.
        optimizers: an optimiser and a schedule of the caller's; None makes those of `args`.
    """

    in_parts = False
    """Whether what the optimiser steps is in shards, to which gradients are added up over the processes."""
    gathers = False
    """Whether weights are in shards during an update, so that all processes have to make the same passes."""
    any_count = True
    """Whether another number of processes can go on from what `save` wrote."""

    def __init__(self, policy: Policy, args: R3Config, optimizers: tuple[Any, Any] = (None, None)) -> None:
        self.policy, self.args = policy, args
        self._group: Any = None
        self.optimizer, self.scheduler = optimizers
        self.names: dict[nn.Parameter, str] = {
            p: name for name, p in policy.module.named_parameters() if p.requires_grad
        }
        """What the optimiser steps, with the names of the weights."""
        self.branch_of: dict[nn.Parameter, str] = {}
        """The same with the branches of the backbone, from `prepare` on."""

    def prepare(self, used: Callable[[], float], progressive: Progressive) -> None:
        """Makes the optimiser and the course of its rate. used: share of the run's time that has passed; progressive:
        where the run stands, whose phases have a course each."""
        args, names = self.args, self.names
        self.branch_of = {p: branch_of(name, self.policy.spec.branches) for p, name in names.items()}
        for parameter in () if self.in_parts else names:
            ranks.share_first(parameter.detach())
        if self.optimizer is None:
            self.optimizer = self._optimizer()
        if self.scheduler is None:
            steps = {"num_warmup_steps": args.warmup_steps, "num_training_steps": args.max_steps}
            self.scheduler = get_scheduler(args.lr_scheduler_type, self.optimizer, **steps)
            if args.schedule == "progressive" and args.restart_rate and isinstance(self.scheduler, LambdaLR):
                course = partial(course_of, args.lr_scheduler_type, args.warmup_steps)
                anew = begun_anew(course, lambda: progressive.start, args.apart_fraction, args.max_steps)
                self.scheduler = LambdaLR(self.optimizer, anew)
            if args.time_budget_s is not None and isinstance(self.scheduler, LambdaLR):
                self.scheduler = ending_in_time(self.scheduler, used, total_steps=args.max_steps)

    def _optimizer(self) -> torch.optim.Optimizer:
        """Of all that is trained, each with its rate."""
        args, names = self.args, self.names
        gates = {p for p, name in names.items() if name.endswith(f".{GATE}")}
        decayed = {n for n, p in self.policy.module.named_parameters() if p.ndim > 1}
        optimizer = make_optimizer(names, frozenset(decayed - {names[p] for p in gates}), args)
        if args.image_learning_rate is not None:
            drawing = {p for p, name in names.items() if branch_of(name, self.policy.spec.branches) == GENERATION}
            if not drawing:
                raise InputError("nothing of the generation branch is trained", hint="leave its learning rate out")
            set_rate(optimizer, drawing, args.image_learning_rate)
        set_rate(optimizer, gates, args.gate_learning_rate)
        return optimizer

    def gather(self) -> None:
        """Makes the weights whole, as they are between updates. All processes call it."""

    def base(self, batcher: Batcher) -> AbstractContextManager[None] | None:
        """What all micro-batches of an update are planned in, and scored by the base; None does it one by one."""
        return None

    @contextmanager
    def collecting(self, count: int, batcher: Batcher) -> Iterator[None]:
        """Around the passes of `count` micro-batches, as many in every process."""
        with adapter_merged(self.policy.module):
            yield

    def over_parts(self, values: Tensor) -> Tensor:
        """Of numbers that every shard has a share of: their sum."""
        return values

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a loss to the parameters."""
        loss.backward()

    def idle(self) -> None:
        """A micro-batch with nothing in it, while another process has one."""

    def norm(self) -> Tensor:
        """Of the step's gradient, over all processes."""
        return total_norm(p.grad for p in self.names if p.grad is not None)

    def step(self, norm: Tensor) -> None:
        """Clips the gradient, whose norm this is, to `max_grad_norm`, steps, and forgets the gradient."""
        parameters = list(self.names)
        torch.nn.utils.clip_grads_with_norm_(parameters, self.args.max_grad_norm, norm)
        self.optimizer.step()
        self.scheduler.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forgets the gradient."""
        for parameter in self.names:
            parameter.grad = None

    def saved_bytes(self) -> int:
        """About how much `save` writes, over all processes: two float32 moments of every trained number, and full
        weights."""
        return (8 if self.adapted else 12) * sum(p.numel() for p in self.names)

    @property
    def adapted(self) -> bool:
        """Whether an adapter is trained, and not full weights."""
        return bool(adapted_layers(self.policy.module))

    def save(self, folder: Path) -> Rest:
        """The moments, of full weights these too, and the schedule. Every process calls it, and the weights may change
        as soon as it returns.

        Returns what waits for the rest, which is written meanwhile; None where all is written.
        """
        schedule = {"groups": _settings(self.optimizer), "scheduler": self.scheduler.state_dict()}
        if self.adapted:
            if ranks.rank() == 0:
                torch.save({"optimizer": self.optimizer.state_dict(), **schedule}, folder / OPTIMIZER)
            return None
        background = self.args.async_save and self._copies_fit()
        if background and self._group is None:
            self._group = ranks.group_of_threads()
        rest = save_parts(folder, self.names, self.optimizer, background=background, group=self._group)
        if ranks.rank() == 0:
            torch.save(schedule, folder / SCHEDULE)
        return rest

    def _copies_fit(self) -> bool:
        """Whether every machine has memory for copies of what its processes hold; twice, for all else that grows."""
        copies = parts_bytes(self.names, self.optimizer) * ranks.on_this_machine()
        return all(ranks.everyone(2 * copies < free_bytes()))

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote. Raises CheckpointError for a run that trained something else."""
        file = folder / (OPTIMIZER if self.adapted else SCHEDULE)
        if not file.is_file():
            raise CheckpointError(
                f"{folder} holds no {file.name}", hint="did the run train an adapter, or DeepSpeed step it?"
            )
        stored = torch.load(file, map_location="cpu", weights_only=True)
        groups, own = stored["groups"], self.optimizer.param_groups
        if len(groups) != len(own):
            raise CheckpointError(f"{file} has {len(groups)} groups of weights with rates of their own, not {len(own)}")
        settings = _settings(self.optimizer)
        if self.adapted:
            self.optimizer.load_state_dict(stored["optimizer"])
        else:
            load_parts(folder, self.names, self.optimizer)
        if isinstance(self.scheduler, LambdaLR):
            # rates and other settings are those of this run's arguments, which may have changed; moments and the step
            # are the checkpoint's
            step = stored["scheduler"]["last_epoch"]
            rates = [s["initial_lr"] * c(step) for s, c in zip(settings, self.scheduler.lr_lambdas, strict=True)]
            groups = [{**group, "lr": rate} for group, rate in zip(settings, rates, strict=True)]
            stored["scheduler"]["base_lrs"] = [group["initial_lr"] for group in groups]
            stored["scheduler"]["_last_lr"] = rates
        for held, group in zip(self.optimizer.param_groups, groups, strict=True):
            held.update(group)
        self.scheduler.load_state_dict(stored["scheduler"])


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
