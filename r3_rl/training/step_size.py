"""How far an optimiser step moves the trained weights, next to their size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SAMPLED = 1024
"""Elements of each trained tensor, evenly spaced: a copy of all would be a second model."""


@contextmanager
def step_size(module: nn.Module) -> Iterator[dict[str, float]]:
    """Compare the trained weights before and after the block.

    |w_after - w_before| / |w_after| over the sampled elements of all trained tensors.

    Args:
        module: of the policy.

    Returns:
        A dictionary with `weights/step_size`, filled when the block ends.

    >>> layer = nn.Linear(2, 2)
    >>> with step_size(layer) as found, torch.no_grad():
    ...     for parameter in layer.parameters():
    ...         parameter *= 2
    >>> found
    {'weights/step_size': 0.5}
    """
    found: dict[str, float] = {}
    before = _sampled(module)
    yield found
    after = _sampled(module)
    size, moved = (float(torch.linalg.vector_norm(t)) for t in (after, after - before))
    found["weights/step_size"] = moved / size if size else 0.0


@torch.no_grad()
def _sampled(module: nn.Module) -> Tensor:
    trained = [p.detach().flatten() for p in module.parameters() if p.requires_grad]
    # in float64, so that the square of a step of 1e-30 is not 0
    return torch.cat([flat[:: -(-flat.numel() // SAMPLED)] for flat in trained]).double()
