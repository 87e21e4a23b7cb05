"""The optimiser of a run: AdamW in one of its forms, with groups for what is decayed and what is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from r3_rl.training.config import R3Config


def make_optimizer(
    names: Mapping[nn.Parameter, str], matrices: frozenset[str], args: R3Config
) -> torch.optim.Optimizer:
    """A fresh optimiser.

    Args:
        names: what it steps, with the names of the weights.
        matrices: names of weights that are decayed; vectors (biases, norms) are not.
        args: its kind, rate, betas, epsilon and decay.

    >>> weight = nn.Parameter(torch.ones(2, 2))
    >>> optimizer = make_optimizer({weight: "w"}, frozenset({"w"}), R3Config("out", weight_decay=0.1))
    >>> optimizer.param_groups[0]["weight_decay"]
    0.1
    """
    decayed = [p for p, name in names.items() if name in matrices]
    others = [p for p, name in names.items() if name not in matrices]
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, args.weight_decay), (others, 0.0))
        if parameters
    ]
    kind, options = _kind(args.optim)
    betas = (args.adam_beta1, args.adam_beta2)
    return kind(groups, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon, **options)  # type: ignore[no-any-return]


def _kind(optim: str) -> tuple[Any, dict[str, Any]]:
    if optim == "adamw_torch":
        return torch.optim.AdamW, {}
    if optim == "adamw_torch_8bit":
        from torchao.optim import AdamW8bit

        return AdamW8bit, {}
    from bitsandbytes.optim import AdamW

    return AdamW, {"optim_bits": 8 if "8bit" in optim else 32, "is_paged": "paged" in optim}
