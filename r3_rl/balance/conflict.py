"""Where objectives pull against each other: dot products of their gradients, by layer and branch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from r3_rl.modalities import Objective

KINDS: tuple[Objective, Objective] = ("understanding", "generation")
"""Objectives, where texts and images are told apart."""
_NUMBER = re.compile(r"\.(\d+)\.")


def place_of(name: str, branch: str) -> str:
    """Return where a parameter counts: its branch and the number of its layer, or `other` outside of layers.

    >>> place_of("model.layers.3.mlp.up_proj.weight", "understanding"), place_of("head.weight", "shared")
    ('understanding/3', 'shared/other')
    """
    found = _NUMBER.search(name)
    return f"{branch}/{found[1] if found else 'other'}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Conflict:
    """The gradients of m objectives in one step, as far as their dot products tell."""

    step: int
    """Steps that were done before."""
    objectives: tuple[str, ...]
    grams: Mapping[str, Tensor]
    """By place (`place_of`): float64 [m, m], the dot products of the gradients of the weights there."""
    weights: tuple[float, ...]
    """What each gradient counted in the step's."""

    @property
    def gram(self) -> Tensor:
        """Of all weights, float64 [m, m]."""
        return torch.stack(list(self.grams.values())).sum(dim=0)

    def numbers(self) -> dict[str, float]:
        """The metrics: norms, cosines of pairs, weights. A cosine with a gradient of 0 is left out."""
        norms, cosine = self.gram.diagonal().clamp(min=0).sqrt(), cosines(self.gram)
        found = {f"grad/norm_{name}": float(norm) for name, norm in zip(self.objectives, norms, strict=True)}
        for (i, a), (j, b) in combinations(enumerate(self.objectives), 2):
            if not torch.isnan(cosine[i, j]):
                found["grad/cosine" if (a, b) == KINDS else f"grad/cosine/{a}_{b}"] = float(cosine[i, j])
        return found | {f"grad/weight_{n}": weight for n, weight in zip(self.objectives, self.weights, strict=True)}

    def row(self) -> dict[str, Any]:
        """As a line of `conflict.jsonl`, without its step."""
        grams = {place: gram.tolist() for place, gram in self.grams.items()}
        return {
            "objectives": list(self.objectives), "grams": grams, "weights": list(self.weights),
        }  # fmt: skip


def cosines(gram: Tensor) -> Tensor:
    """Cosines of gradients from their dot products, [m, m]; nan with a gradient of 0.

    >>> cosines(torch.tensor([[1.0, -1.0], [-1.0, 4.0]]))[0, 1].item()
    -0.5
    """
    norms = gram.diagonal().clamp(min=0).sqrt()
    return gram / (norms[:, None] * norms)


def grams_by_place(vectors: Sequence[Tensor], sizes: Sequence[int], places: Sequence[str]) -> dict[str, Tensor]:
    """Dot products of m vectors, place by place.

    Args:
        vectors: m of [n], each the gradients of all weights in a row.
        sizes: numbers of elements of the weights, which add up to n.
        places: of the weights.

    Returns:
        float64 [m, m] by place, on the CPU.
    """
    found: dict[str, Tensor] = {}
    begin = 0
    for size, place in zip(sizes, places, strict=True):
        part = torch.stack([vector[begin : begin + size] for vector in vectors]).double()
        gram = (part @ part.T).cpu()
        found[place] = found[place] + gram if place in found else gram
        begin += size
    return found
