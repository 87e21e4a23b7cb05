"""DeepSpeed: its ZeRO optimiser shards moments and master weights over the processes.

DeepSpeed expects one forward and one backward pass of its engine for every micro-batch, the same number of them in
every process. Here processes have unlike micro-batches, some none at all. So a step's gradient is accumulated beside
the engine, added up over the processes, and handed over in one backward pass whose gradient it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from r3_rl.errors import InputError, MissingPackageError
from r3_rl.recipe.learning import STAGES, WHY_NOT

INSTALL = "pip install 'r3-rl[deepspeed]'"
LAUNCH = "torchrun --nproc_per_node 8 -m r3_rl train RECIPE"


def checked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """DeepSpeed's settings with what the trainer knows filled in.

    Raises InputError for a stage that cannot be kept here and for a process that no launcher started,
    MissingPackageError without DeepSpeed.
    """
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    if stage not in STAGES:
        raise InputError(f"training.deepspeed: zero_optimization.stage {stage}", hint=WHY_NOT)
    if find_spec("deepspeed") is None:
        raise MissingPackageError("training.deepspeed needs the package deepspeed", hint=INSTALL)
    if "RANK" not in os.environ:
        raise InputError("training.deepspeed needs a launcher, in one process too", hint=LAUNCH)
    if settings.get("bf16", {}).get("enabled") and not torch.cuda.is_available():
        raise InputError("training.deepspeed.bf16 needs a GPU", hint="leave it out, with model.dtype float32")
    # moments in the host's memory work with torch's AdamW too, if one insists
    known = {"gradient_clipping": "auto", "zero_force_ds_cpu_optimizer": False}
    return {"train_micro_batch_size_per_gpu": "auto", **known, **settings}


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
