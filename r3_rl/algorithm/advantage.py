"""How much better a rollout did than its peers.

Shapes: R rollouts, G groups, Z groups without spread. nan and inf are missing: they are in no statistic and their
rollouts have advantage 0. Give the rewards of all processes at once, or groups that no two processes share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from r3_rl.algorithm.peers import PeerStatistics, peer_statistics
from r3_rl.errors import InputError

SCALES = ("none", "group", "batch")


@dataclass(frozen=True, kw_only=True, eq=False)
class Advantages:
    """Advantages of a batch and what they were compared with."""

    values: torch.Tensor
    """float32 [R]; exactly 0 for missing rewards and groups without spread."""
    num_groups: int
    """Groups with at least one reward."""
    reward_mean: float
    """Mean of the rewards that are there; nan if there is none."""
    reward_std: float
    """Mean over groups of the std of their rewards (of the whole batch for scale `batch`); nan if there is none."""


def advantages(
    rewards: torch.Tensor,
    groups: torch.Tensor,
    *,
    scale: Literal["none", "group", "batch"] = "none",
    unbiased: bool = True,
    eps: float = 1e-4,
) -> Advantages:
    """Compare each reward with the mean of its group.

    A_i = r_i - mean_g                          scale `none` (R3)
    A_i = (r_i - mean_g) / (std_g + eps)        scale `group`
    A_i = (r_i - mean_g) / (std_batch + eps)    scale `batch`

    Args:
        rewards: [R]; nan and inf are missing.
        groups: int [R], peers share an id.
        scale: what the difference is divided by.
        unbiased: divide squares by n - 1 (TRL, MixGRPO, R3's option) rather than n (Flow-GRPO).
        eps: added to the std. TRL and Flow-GRPO use 1e-4, R3's option 1e-6, MixGRPO 1e-8.

    Raises:
        InputError: an unknown scale, or vectors of unlike length.

    Source: GRPO (DeepSeekMath, section 4.1); R3 for `none`; Flow-GRPO (global_std) for `batch`.

    >>> advantages(torch.tensor([1.0, 0.0, 0.25, float("nan")]), torch.tensor([3, 3, 5, 5])).values
    tensor([ 0.5000, -0.5000,  0.0000,  0.0000])
    """
    if scale not in SCALES:
        raise InputError(f"unknown reward scale {scale!r}", hint=f"choose one of {', '.join(SCALES)}")
    rewards = rewards.double()
    peers = peer_statistics(rewards, groups)
    std = peers.std(unbiased=unbiased)
    known = rewards[rewards.isfinite()]
    batch_std = known.std(correction=int(unbiased)) if len(known) > int(unbiased) else known.new_tensor(0.0)
    divisor = {"none": known.new_tensor(1.0), "group": std[peers.index] + eps, "batch": batch_std + eps}[scale]
    reward_std = batch_std if scale == "batch" else std[peers.count > 0].mean()
    return Advantages(
        values=_compared(rewards, peers, divisor).float(),
        num_groups=int((peers.count > 0).sum()),
        reward_mean=float(known.mean()),
        reward_std=float(reward_std) if len(known) else float("nan"),
    )


def _compared(values: torch.Tensor, peers: PeerStatistics, divisor: torch.Tensor) -> torch.Tensor:
    """Give (value - mean of the group) / divisor; exactly 0 where missing or where the group has no spread."""
    useful = values.isfinite() & ~peers.equal[peers.index]
    return torch.where(useful, (values - peers.mean[peers.index]) / divisor, 0.0)
