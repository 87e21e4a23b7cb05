"""Statistics of a group: the rollouts that are compared with each other.

Shapes: R rollouts, G groups. A value that is not finite is missing: it is in no statistic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from r3_rl.errors import InputError

EQUAL_WITHIN = 1e-6
"""Values of a group that lie this close together count as equal: what float32 leaves of equal scores must not be
divided by its own std and become a full-sized advantage."""


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
    highest: torch.Tensor
    squares: torch.Tensor
    """Sum of squared distances from the mean."""

    @property
    def equal(self) -> torch.Tensor:
        """bool [G], groups that have values and whose values are all equal."""
        return (self.count > 0) & (self.highest - self.lowest <= EQUAL_WITHIN)

    def std(self, *, unbiased: bool) -> torch.Tensor:
        """Give each group's std, [G]; 0 for a group whose values are equal.

        >>> peer_statistics(torch.tensor([1.0, 3.0]), torch.tensor([7, 7])).std(unbiased=False)
        tensor([1.], dtype=torch.float64)
        """
        divisor = (self.count - int(unbiased)).clamp(min=1)
        return torch.where(self.equal, 0.0, (self.squares / divisor).sqrt())


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
    return PeerStatistics(
        ids=ids,
        index=index,
        count=count,
        mean=mean,
        lowest=empty.scatter_reduce(0, place, known, "amin", include_self=False),
        highest=empty.scatter_reduce(0, place, known, "amax", include_self=False),
        squares=torch.where(count > 0, squares, torch.nan),
    )
