"""RMSNorm and rotary embedding with hand-written backward passes.

At the embedded size on a CPU most of a training step is memory traffic, not matrix products; autograd's own version of
these two operations makes three times as many passes over the activations (measured: see the lab book). Shapes: N
tokens, H heads, D channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        size = x.shape[-1]
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(size).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        product = grad * x
        grad_weight = (product * scale).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        # d/dx: scale * (g w - n mean(g w n)) with n = scale * x
        pull = (product @ weight).unsqueeze(-1).mul_(scale.pow(3).div_(x.shape[-1]))
        grad_x = (grad * weight).mul_(scale).addcmul_(x, pull, value=-1)
        return grad_x, grad_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed in float32.

    >>> rms_norm(torch.tensor([[3.0, 4.0]]), torch.ones(2), 0.0)
    tensor([[0.8485, 1.1314]])
    """
    if x.dtype == torch.float32 and weight.dtype == torch.float32:
        return _RmsNorm.apply(x, weight, eps)  # type: ignore[no-any-return]
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, sin, -1.0), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    first, second = x.chunk(2, -1)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    low, high = out.chunk(2, -1)
    torch.mul(first, cos, out=low).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=high).addcmul_(first, sin, value=sign)
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the rotate-half form: x [N, H, D], cos and sin [N, 1, D / 2]."""
    return _Rotate.apply(x, cos.to(x.dtype), sin.to(x.dtype))  # type: ignore[no-any-return]
