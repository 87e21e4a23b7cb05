"""What the algorithm rewards: scores and gains become one reward for each text and each image.

Shapes: R rollouts. V is the panel's score in [0, 1], C the gain, f = 1 where the text is well formed, w the weight of
good form. nan is missing.

    part              paper     released
    draft image       V         V
    plan text         V + w f   f (V + w)
    critique text     C + w f   f (C + w)
    refined image     C         V1; without a refinement (a stop) there is nothing to reward

A text's V or C is the mean over its children (`training/credit.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from r3_rl.errors import InputError
from r3_rl.recipe.base import default
from r3_rl.recipe.learning import AlgorithmSection


@dataclass(frozen=True, kw_only=True)
class Format:
    """How good form enters the reward of a text.

    >>> Format(mode="add").weight
    0.1
    """

    mode: Literal["gate", "add"] = default(AlgorithmSection, "format_mode")
    """`gate`: malformed texts earn 0 (released code). `add`: form earns its weight beside the value (paper)."""
    weight: float = default(AlgorithmSection, "format_weight")
    """w, 0 or more."""

    def __post_init__(self) -> None:
        if self.mode not in ("gate", "add"):
            raise InputError(f"unknown format mode {self.mode!r}", hint="choose gate or add")
        if not self.weight >= 0:
            raise InputError(f"format weight {self.weight} rewards malformed texts", hint="give 0 or more")


def text_reward(value: torch.Tensor, well_formed: torch.Tensor, form: Format) -> torch.Tensor:
    """Join what a text led to with its form: f (value + w) for `gate`, value + w f for `add`.

    Args:
        value: [R], score or gain; nan is missing.
        well_formed: bool [R], f.
        form: mode and weight.

    Returns:
        float32 [R]; nan where the value is missing, except that a gated malformed text earns 0 whatever its value.

    Source: R3; the table at the top of this file.

    >>> value, form = torch.tensor([0.5, 0.5]), torch.tensor([True, False])
    >>> text_reward(value, form, Format(mode="gate")), text_reward(value, form, Format(mode="add"))
    (tensor([0.6000, 0.0000]), tensor([0.6000, 0.5000]))
    """
    value = value.float()
    if form.mode == "gate":
        return torch.where(well_formed, value + form.weight, 0.0)
    return value + form.weight * well_formed.float()
