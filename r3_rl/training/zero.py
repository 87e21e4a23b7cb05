"""DeepSpeed's ZeRO 1 and 2: the optimiser in shards beside whole weights. `zero3.py` has stage 3.

DeepSpeed expects one forward and one backward pass of its engine for every micro-batch. Processes roll out different
things and have other numbers of them, so a step's gradient is accumulated beside the engine and handed over in one
backward pass whose gradient it is.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from r3_rl import ranks
from r3_rl.balance.progressive import Progressive
from r3_rl.errors import CheckpointError, InputError, MissingPackageError
from r3_rl.policy.base import Policy
from r3_rl.training.config import R3Config
from r3_rl.training.parallel import Learner
from r3_rl.training.parts import Rest

INSTALL = "pip install 'r3-rl[deepspeed]'"
LAUNCH = "torchrun --nproc_per_node 8 -m r3_rl train RECIPE"


class DeepSpeedLearner(Learner):
    """ZeRO 1 or 2: whole weights in every process, the optimiser in shards."""

    engine: Any = None
    any_count = False

    def __init__(self, policy: Policy, args: R3Config) -> None:
        super().__init__(policy, args)
        self.settings = engine_settings(args)

    def prepare(self, used: Callable[[], float], progressive: Progressive) -> None:
        """Makes the engine too; from then on a gradient of the weights sets it off."""
        super().prepare(used, progressive)
        if self.engine is not None:
            return
        deepspeed = package()
        held = nn.Module()  # what is trained and nothing else, so that the base is neither sent nor saved
        for parameter, name in self.names.items():
            held.register_parameter(name.replace(".", "/"), parameter)
        self.engine, *_ = deepspeed.initialize(
            model=held, model_parameters=list(self.names), optimizer=self.optimizer, config=self.settings
        )

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a loss to the parameters without the hooks that would set DeepSpeed off."""
        keep_gradient(list(self.names), loss)

    def step(self, norm: Tensor) -> None:
        """DeepSpeed clips, steps and sends the weights."""
        self.engine.backward(handed_over(list(self.names)))
        self.engine.step()
        self.scheduler.step()
        self.zero_grad()

    def saved_bytes(self) -> int:
        """About how much `save` writes, over all processes: the weights, masters and moments."""
        return saved_bytes(self)

    def save(self, folder: Path) -> Rest:
        """Every process's shard, in DeepSpeed's layout, and the schedule."""
        save_engine(self, folder)
        return None

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote. Raises CheckpointError when DeepSpeed finds nothing."""
        load_engine(self, folder)


def saved_bytes(learner: Learner) -> int:
    """About how much `save_engine` writes, over all processes: the weights, masters and moments."""
    return 16 * sum(p.numel() for p in learner.names)


def save_engine(learner: Any, folder: Path) -> None:
    """Every process's shard, in DeepSpeed's layout, and the schedule of a learner that has an `engine`."""
    learner.engine.save_checkpoint(str(folder))
    if ranks.rank() == 0:
        torch.save(learner.scheduler.state_dict(), folder / "scheduler.pt")


def load_engine(learner: Any, folder: Path) -> None:
    """Restores what `save_engine` wrote. Raises CheckpointError when DeepSpeed finds nothing."""
    path, _ = learner.engine.load_checkpoint(str(folder))
    if path is None:
        raise CheckpointError(f"{folder} holds no checkpoint of DeepSpeed", hint="was this run trained with it?")
    learner.scheduler.load_state_dict(torch.load(folder / "scheduler.pt", weights_only=True))


def package() -> Any:
    """DeepSpeed, told of a machine without an accelerator before it looks."""
    # it calls torch's collectives by names that torch has renamed, and every call would say so
    warnings.filterwarnings(
        "ignore", message=r".*(_into_tensor|_scatter_tensor)` is deprecated", category=FutureWarning
    )
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    return deepspeed


def engine_settings(args: R3Config) -> dict[str, Any]:
    """DeepSpeed's settings with what the trainer knows filled in; what else is "auto" is left to DeepSpeed.

    Raises InputError for a process that no launcher started and for bf16 without a GPU, MissingPackageError without
    DeepSpeed.
    """
    given: Mapping[str, Any] = args.deepspeed or {}
    if find_spec("deepspeed") is None:
        raise MissingPackageError("training.deepspeed needs the package deepspeed", hint=INSTALL)
    if "RANK" not in os.environ:
        raise InputError("training.deepspeed needs a launcher, in one process too", hint=LAUNCH)
    if given.get("bf16", {}).get("enabled") and not torch.cuda.is_available():
        raise InputError("training.deepspeed.bf16 needs a GPU", hint="leave it out, with model.dtype float32")
    known = {
        "gradient_clipping": args.max_grad_norm,
        # moments in the host's memory work with torch's AdamW too, if one insists
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": args.max_steps + 1,
    }
    # a step is one backward pass of the engine, whatever micro-batches it was made of
    sizes = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "train_batch_size": ranks.count()}
    return {**known, **_without_auto(given), **sizes}


def _without_auto(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_auto(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if value != "auto"
    }


def keep_gradient(parameters: Sequence[nn.Parameter], loss: Tensor) -> None:
    """Adds the gradient of a loss to the parameters without the hooks that would set DeepSpeed off."""
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for p, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            p.grad = gradient if p.grad is None else p.grad + gradient


def handed_over(parameters: Sequence[nn.Parameter]) -> Tensor:
    """A zero whose gradient is the one that the parameters hold; they hold none afterwards.

    Every parameter is a term of its own, so DeepSpeed takes one gradient away before the next is there.
    """
    terms = []
    for p in parameters:
        gradient, p.grad = torch.zeros_like(p) if p.grad is None else p.grad, None
        terms.append(_Hand.apply([gradient], p))
    return torch.stack(terms).sum()


class _Hand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: list[Tensor], parameter: Tensor) -> Tensor:
        ctx.gradient = gradient
        return parameter.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *scale: Tensor) -> tuple[None, Tensor]:
        return None, ctx.gradient.pop().mul_(scale[0])  # in place: a second copy of all gradients would not fit
