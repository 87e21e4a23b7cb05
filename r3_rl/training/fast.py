"""Merged weights for rollouts and updates, where they are the same numbers in fewer products."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from r3_rl.policy.adapters import adapter_merged
from r3_rl.policy.lora import drops, first_adapted_layer


def fast_weights(module: nn.Module) -> AbstractContextManager[None]:
    """In float32 rollouts run on merged weights: the same numbers without the adapter's extra products."""
    if first_adapted_layer(module) and next(module.parameters()).dtype == torch.float32:
        return adapter_merged(module)
    return nullcontext()


def fast_update(module: nn.Module) -> AbstractContextManager[None]:
    """The same with gradient, unless the adapter's input is dropped: that needs the adapter beside the weights."""
    return nullcontext() if drops(module) else fast_weights(module)
