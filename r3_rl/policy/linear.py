"""Linear layers that send their float32 products to oneDNN where torch's own are slow.

On a CPU torch multiplies float32 matrices with MKL, which on processors that are not Intel's leaves half of the vector
width unused: 104 GFLOP/s a core where oneDNN reaches 245 (measured: lab book, entry 25). `torch.compile` sends linear
layers to oneDNN; in eager mode nothing public does, so the operation that the compiler emits is called by its name. It
is plain float32 arithmetic. Everywhere else, and where a torch lacks the operation, these are torch's own layers.
Shapes: M rows, K in, N out.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEAST_PRODUCTS = 2 * 2**20
"""Below M K N of this, preparing the operation costs more than it saves."""


class Linear(nn.Linear):
    """nn.Linear by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: x [..., K], weight [N, K], bias [N] -> [..., N].

    >>> linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), torch.tensor([5.0]))
    tensor([[16.]])
    """
    suits = (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() * weight.shape[0] >= _LEAST_PRODUCTS
        and onednn_is_faster()
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
    )
    if not suits:
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return]
    return _onednn(x, weight, bias)


@cache
def onednn_is_faster() -> bool:
    """Whether float32 products of this machine are better left to oneDNN."""
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and "GenuineIntel" not in _processor()
    )


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = _onednn(grad, weight.t()) if needs_x else None
        grad = grad.flatten(0, -2)
        grad_bias = grad.sum(0) if needs_bias else None
        if not needs_weight:
            return grad_x, None, grad_bias
        left, right = grad.t(), x.flatten(0, -2).t()
        # the narrower side gives the rows: with 128 and 384 the other way round takes a third longer
        wide = left.shape[0] > right.shape[0]
        return grad_x, _onednn(right, left).t() if wide else _onednn(left, right), grad_bias
