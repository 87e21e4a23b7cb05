"""How much better a rollout did than its peers: the rollouts of its group.

Shapes: R rollouts, G groups. nan and inf are missing: they are in no statistic and their rollouts have advantage 0.
Give the rewards of all processes together, or groups that no two processes share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from r3_rl.errors import InputError

SCALES = ("none", "group", "batch")
EQUAL_WITHIN = 1e-6
"""Values of a group that lie this close together count as equal: what float32 leaves of equal scores must not be
divided by its own std and become a full-sized advantage."""


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
    std = torch.where(peers.equal, 0.0, (peers.squares / (peers.count - int(unbiased)).clamp(min=1)).sqrt())
    known = rewards[rewards.isfinite()]
    batch_std = known.std(correction=int(unbiased)) if len(known) > int(unbiased) else known.new_tensor(0.0)
    divisor = {"none": known.new_tensor(1.0), "group": std[peers.index] + eps, "batch": batch_std + eps}[scale]
    reward_std = batch_std if scale == "batch" else std[peers.count > 0].mean()
    useful = rewards.isfinite() & ~peers.equal[peers.index]
    values = torch.where(useful, (rewards - peers.mean[peers.index]) / divisor, 0.0)
    return Advantages(
        values=values.float(),
        num_groups=int((peers.count > 0).sum()),
        reward_mean=float(known.mean()),
        reward_std=float(reward_std) if len(known) else float("nan"),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class PeerStatistics:
    """What each group looks like, float64 [G] in the order of `ids`; nan for a group without a value."""

    ids: torch.Tensor
    """int64 [G], rising."""
    index: torch.Tensor
    """int64 [R], where each rollout's group stands in `ids`."""
    count: torch.Tensor
    """int64 [G], values that are not missing."""
    mean: torch.Tensor
    lowest: torch.Tensor
    squares: torch.Tensor
    """Sum of squared distances from the mean."""
    equal: torch.Tensor
    """bool [G], groups that have values and whose values are all equal."""


def peer_statistics(values: torch.Tensor, groups: torch.Tensor) -> PeerStatistics:
    """Gather the statistics of each group.

    mean_g = sum_{i in g} v_i / n_g;   squares_g = sum_{i in g} (v_i - mean_g)^2

    Args:
        values: [R]; nan and inf are missing.
        groups: int [R], the id of each rollout's group; ids need not be dense and peers need not be neighbours.

    Raises:
        InputError: `values` and `groups` are not vectors of one length.

    >>> found = peer_statistics(torch.tensor([1.0, 5.0, float("nan"), 3.0]), torch.tensor([4, 2, 4, 4]))
    >>> found.ids.tolist(), found.count.tolist(), found.mean.tolist()
    ([2, 4], [1, 2], [5.0, 2.0])
    """
    if values.ndim != 1 or values.shape != groups.shape:
        raise InputError(
            f"values {tuple(values.shape)} and groups {tuple(groups.shape)} are not vectors of one length",
            hint="give one value and one group id for each rollout",
        )
    values = values.double()
    ids, index = torch.unique(groups, return_inverse=True)
    present = torch.isfinite(values)
    known, place = values[present], index[present]
    count = torch.zeros(len(ids), dtype=torch.int64, device=values.device).index_add_(0, place, torch.ones_like(place))
    empty = values.new_full((len(ids),), torch.nan)
    mean = torch.zeros_like(empty).index_add_(0, place, known) / count
    squares = torch.zeros_like(empty).index_add_(0, place, (known - mean[place]).square())
    lowest, highest = (empty.scatter_reduce(0, place, known, x, include_self=False) for x in ("amin", "amax"))
    return PeerStatistics(
        ids=ids,
        index=index,
        count=count,
        mean=mean,
        lowest=lowest,
        squares=torch.where(count > 0, squares, torch.nan),
        equal=(count > 0) & (highest - lowest <= EQUAL_WITHIN),
    )
