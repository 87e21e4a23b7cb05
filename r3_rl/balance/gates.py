"""The gates of an adapter that is routed by task, as a run sees them: a loss that keeps its parts in use, and figures.

Shapes: T tasks, the stages of the loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from r3_rl.balance.conflict import place_of
from r3_rl.policy.backbone import Branches, branch_of
from r3_rl.policy.routing import routed_layers
from r3_rl.types import STAGES


def gates_of(module: nn.Module) -> dict[str, Tensor]:
    """The gates of each layer by its name, float32 [T, T], a row a task, with gradient; empty without gates."""
    return {name: layer.gates() for name, layer in routed_layers(module).items() if layer.routing.kind == "routed"}


def imbalance(gates: Mapping[str, Tensor]) -> Tensor:
    """T sum_j (mean_k g_kj)^2 - 1, averaged over the layers: 0 where the parts are used alike, T - 1 where all
    tasks use one.

    >>> round(imbalance({"alone": torch.eye(5)}).item(), 5)
    0.0
    >>> round(imbalance({"all in one": torch.eye(5)[:1].expand(5, -1)}).item(), 5)
    4.0
    """
    used = torch.stack(list(gates.values())).mean(1)
    return used.shape[-1] * used.square().sum(-1).mean() - 1


def numbers(gates: Mapping[str, Tensor]) -> dict[str, float]:
    """The metrics: how much of its own part each task takes, averaged over the layers, and the imbalance.

    >>> numbers({"alone": torch.eye(5)})["gate/plan"]
    1.0
    """
    own = torch.stack(list(gates.values())).detach().mean(0).diagonal()
    return {
        **{f"gate/{task}": value for task, value in zip(STAGES, own.tolist(), strict=True)},
        "gate/imbalance": float(imbalance(gates).detach()),
    }


def by_place(gates: Mapping[str, Tensor], branches: Branches) -> dict[str, Any]:
    """As a line of `gates.jsonl`, without its step: the mean gate of each place (`conflict.place_of`), a row a task."""
    found: dict[str, list[Tensor]] = {}
    for name, gate in gates.items():
        found.setdefault(place_of(name, branch_of(name, branches)), []).append(gate.detach().cpu())
    return {"tasks": list(STAGES), "places": {place: torch.stack(own).mean(0).tolist() for place, own in found.items()}}
