"""What the algorithm rewards: scores and gains become one reward for each text and each image.

Shapes: R rollouts. V is the panel's score in [0, 1], C the gain, f = 1 where the text is well formed, w the weight of
good form. nan is missing.

    part              paper     released
    draft image       V         V
    plan text         V + w f   f (V + w)
    critique text     C + w f   f (C + w)
    refined image     C         V1; without a refinement (a stop) there is nothing to reward
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from r3_rl.algorithm.gain import Gains
from r3_rl.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Format:
    """How good form enters the reward of a text.

    >>> Format(mode="add").weight
    0.1
    """

    mode: Literal["gate", "add"] = "gate"
    """`gate`: malformed texts earn 0 (released code). `add`: form earns its weight beside the value (paper)."""
    weight: float = 0.1
    """w, 0 or more."""

    def __post_init__(self) -> None:
        if self.mode not in ("gate", "add"):
            raise InputError(f"unknown format mode {self.mode!r}", hint="choose gate or add")
        if not self.weight >= 0:
            raise InputError(f"format weight {self.weight} rewards malformed texts", hint="give 0 or more")


@dataclass(frozen=True, kw_only=True, eq=False)
class StageRewards:
    """Rewards of one stage: of plans and drafts, or of critiques and refinements."""

    text: torch.Tensor
    """float32 [R], of the plan or the critique; nan is missing."""
    image: torch.Tensor
    """float32 [R], of the draft or the refinement; nan is missing."""


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


def reason_rewards(
    score: torch.Tensor, plan_well_formed: torch.Tensor, form: Format, *, images_per_plan: int = 1
) -> StageRewards:
    """Reward plans and drafts: a draft by its score V, a plan by the mean V of its drafts and by its form.

    Args:
        score: [R], V of each draft; nan is missing.
        plan_well_formed: bool [R / m].
        form: mode and weight of good form.
        images_per_plan: m, neighbouring drafts that were drawn from one plan.

    >>> reason_rewards(torch.tensor([0.25]), torch.tensor([True]), Format(weight=0.5)).text
    tensor([0.7500])
    >>> reason_rewards(torch.tensor([0.0, 1.0]), torch.tensor([True]), Format(weight=0.5), images_per_plan=2).text
    tensor([1.])
    """
    return StageRewards(
        text=text_reward(score.reshape(-1, images_per_plan).nanmean(dim=1), plan_well_formed, form),
        image=score.float(),
    )


def refine_rewards(
    gains: Gains,
    score_after: torch.Tensor,
    critique_well_formed: torch.Tensor,
    form: Format,
    *,
    image: Literal["gain", "score"] = "gain",
    images_per_critique: int = 1,
) -> StageRewards:
    """Reward critiques and refinements: the critique by its gain and form, the refinement by its gain or its score.

    Args:
        gains: of the same R rollouts.
        score_after: [R], V1; read for `image="score"`.
        critique_well_formed: bool [R].
        form: mode and weight of good form.
        image: `gain` is the paper's choice, `score` that of the released code. Inside a group of refinements of one
            image both give the same advantage, except where the image was perfect or `repair` moved a gain.
        images_per_critique: m, neighbouring rows that were drawn by one critique; its value is the mean of their gains.

    Raises:
        InputError: `image` is neither.

    >>> from r3_rl.algorithm.gain import gains
    >>> before, after = torch.tensor([0.5, 0.5]), torch.tensor([1.0, float("nan")])
    >>> stopped = torch.tensor([False, True])
    >>> gained = gains("paper", before, after, stopped, torch.tensor([0, 0]))
    >>> refine_rewards(gained, after, torch.tensor([True, True]), Format(weight=0.0)).text
    tensor([0.5000, 0.0000])
    """
    if image not in ("gain", "score"):
        raise InputError(f"unknown reward {image!r} of a refined image", hint="choose gain or score")
    m = images_per_critique
    return StageRewards(
        text=text_reward(gains.values.reshape(-1, m).nanmean(dim=1), critique_well_formed[::m], form),
        image=(gains.values if image == "gain" else score_after).float(),
    )
