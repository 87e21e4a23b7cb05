"""How objectives' gradients become one: weights for them from their Gram matrix.

An aggregator is a function of the dot products of m gradients, float64 [m, m], that returns m weights; the step's
gradient is the weighted sum. Where no two gradients conflict and all are as long, the weights are 1: the plain sum. One
of your own is named like one of ours: `balance.aggregator: ./file.py:name`. A class is made once a run; if it has
`state` and `load`, what the first returns (JSON) is in every checkpoint.

Since m by m numbers decide, gradients may lie in parts on several processes, whose dot products add up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from r3_rl.errors import MissingPackageError

Aggregate = Callable[[Tensor], Tensor]
INSTALL = "pip install 'r3-rl[balance]'"
_RADIUS = 0.5


def total(gram: Tensor) -> Tensor:
    """Add the gradients up as they are.

    >>> total(torch.eye(2, dtype=torch.float64)).tolist()
    [1.0, 1.0]
    """
    return torch.ones(len(gram), dtype=gram.dtype)


def equal_norms(gram: Tensor) -> Tensor:
    """Scale all gradients to their mean length before they are added up: what GradNorm aims at, at once.

    Directions are not changed, so a conflict stays. Source: GradNorm (arXiv 1711.02257) with alpha = 0.

    >>> equal_norms(torch.diag(torch.tensor([1.0, 9.0], dtype=torch.float64)))
    tensor([2.0000, 0.6667], dtype=torch.float64)
    """
    norms = gram.diagonal().clamp(min=0).sqrt()
    return torch.where(norms > 0, norms.mean() / norms.clamp(min=1e-300), 0.0)


def config(gram: Tensor) -> Tensor:
    """Find the direction that has the same positive cosine with every gradient, as long as their projections add up to.

    With u_i = g_i / |g_i| and C_ij = u_i u_j: x = sum_i (C^+ 1)_i u_i, d = x / |x|, result = (sum_i g_i d) d.

    Source: ConFIG (arXiv 2408.11104), equation 2.

    >>> config(torch.eye(2, dtype=torch.float64))
    tensor([1., 1.], dtype=torch.float64)
    """
    norms = gram.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(norms > 0, 1 / norms.clamp(min=1e-300), 0.0)
    cosines = gram * inverse[:, None] * inverse
    on_units = torch.linalg.pinv(cosines).sum(dim=1)
    square = on_units @ cosines @ on_units
    if square <= 0:
        return torch.zeros_like(norms)
    length = (norms * (cosines @ on_units)).sum() / square
    return length * on_units * inverse


def pcgrad(gram: Tensor) -> Tensor:
    """Project each gradient off those it conflicts with, in a random order. Source: PCGrad (arXiv 2001.06782)."""
    return _weighting("PCGradWeighting")(gram)


def mgda(gram: Tensor) -> Tensor:
    """Take the shortest vector between the gradients. Source: MGDA (Désidéri, 2012; arXiv 1810.04650)."""
    return len(gram) * _weighting("MGDAWeighting")(gram)


def upgrad(gram: Tensor) -> Tensor:
    """Project each gradient onto the cone in which none is worsened. Source: UPGrad (arXiv 2406.16232)."""
    return len(gram) * _weighting("UPGradWeighting")(gram)


def dual_proj(gram: Tensor) -> Tensor:
    """Project the mean gradient onto the cone in which none is worsened. Source: GEM (arXiv 1706.08840), as DualProj in
    arXiv 2406.16232."""
    return len(gram) * _weighting("DualProjWeighting")(gram)


def cagrad(gram: Tensor) -> Tensor:
    """Help the worst-off objective within a ball around the mean gradient (c = 0.5). Source: CAGrad (arXiv
    2110.14048)."""
    return len(gram) / (1 + _RADIUS) * _weighting("CAGradWeighting", c=_RADIUS)(gram)


def aligned_mtl(gram: Tensor) -> Tensor:
    """Make the gradients orthogonal and as long as one another. Source: Aligned-MTL (arXiv 2305.19000)."""
    return len(gram) * _weighting("AlignedMTLWeighting")(gram)


def imtl_g(gram: Tensor) -> Tensor:
    """Weigh the gradients so that the sum has equal projections on all. Source: IMTL-G (Liu et al., ICLR 2021)."""
    return len(gram) * _weighting("IMTLGWeighting")(gram)


class GradVac:
    """Turn gradients towards one another up to the cosine that they have had on average. Source: Gradient Vaccine
    (arXiv 2010.05874)."""

    def __init__(self) -> None:
        self._weighting = _weighting("GradVacWeighting")

    def __call__(self, gram: Tensor) -> Tensor:
        """Weights, after which the mean cosines are those of a step more."""
        weights: Tensor = self._weighting(gram)
        return weights

    def state(self) -> dict[str, Any]:
        """The mean cosines so far."""
        cosines = self._weighting.get_buffer("_phi_t") if "_phi_t" in dict(self._weighting.named_buffers()) else None
        return {} if cosines is None else {"cosines": cosines.tolist()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._weighting.reset()
        if "cosines" in state:
            cosines = torch.tensor(state["cosines"], dtype=torch.float64)
            self._weighting(torch.eye(len(cosines), dtype=torch.float64))  # makes room for as many objectives
            self._weighting.get_buffer("_phi_t").copy_(cosines)


def _weighting(name: str, **options: Any) -> Any:
    """One of torchjd's, which all take a Gram matrix. Raises MissingPackageError where it or its solver is missing."""
    try:
        import torchjd.aggregation as aggregation

        return getattr(aggregation, name)(**options)
    except ImportError as error:
        called = name.removesuffix("Weighting")
        raise MissingPackageError(f"the aggregator {called} needs torchjd: {error}", hint=INSTALL) from error
