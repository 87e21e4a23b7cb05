"""DeepSpeed: its ZeRO optimiser shards moments and master weights over the processes.

DeepSpeed expects one forward and one backward pass of its engine for every micro-batch, the same number of them in
every process. Here processes have unlike micro-batches, some none at all. So a step's gradient is accumulated beside
the engine, added up over the processes, and handed over in one backward pass whose gradient it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from r3_rl.errors import InputError, MissingPackageError

INSTALL = "pip install 'r3-rl[deepspeed]'"


def refuse_settings(settings: Mapping[str, Any]) -> None:
    """Raises InputError for settings of DeepSpeed that this trainer cannot keep, MissingPackageError without it."""
    try:
        import deepspeed  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("training.deepspeed needs the package deepspeed", hint=INSTALL) from error
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    if stage not in (1, 2):
        raise InputError(
            f"training.deepspeed: ZeRO stage {stage}",
            hint="use 1 or 2: stage 3 gathers the weights for every pass, and the processes' passes are unlike",
        )


def keep_gradient(parameters: Sequence[nn.Parameter], loss: Tensor) -> None:
    """Adds the gradient of a loss to the parameters without the hooks that would set DeepSpeed off."""
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for p, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            p.grad = gradient if p.grad is None else p.grad + gradient


def handed_over(parameters: Sequence[nn.Parameter]) -> Tensor:
    """A zero whose gradient is the one that the parameters hold; they hold none afterwards."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    return _Hand.apply(gradients, *parameters)  # type: ignore[no-any-return]


class _Hand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return parameters[0].new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        return None, *(gradient * scale[0].to(gradient.dtype) for gradient in gradients)
