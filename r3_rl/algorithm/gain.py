"""What a critique and its refinement earned, the gain C, and what each text and image is rewarded with.

Shapes: R rollouts, one critique each. V0 is the score of the image that was looked at, V1 that of the refinement,
both in [0, 1]. A stop draws nothing, so V1 = V0 there and needs no score. nan is missing and stays missing. With V the
panel's score of a draft, f = 1 where a text is well formed and w the weight of good form:

    part              paper     released
    draft image       V         V
    plan text         V + w f   f (V + w)
    critique text     C + w f   f (C + w)
    refined image     C         V1; without a refinement (a stop) there is nothing to reward

A text's V or C is the mean over its children (`training/credit.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from r3_rl.algorithm.advantage import peer_statistics
from r3_rl.errors import InputError
from r3_rl.recipe.base import default
from r3_rl.recipe.learning import AlgorithmSection

PERFECT_FROM = 1 - 1e-6
"""A weighted panel reaches 1 only up to rounding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Gains:
    """The gain of each rollout and what became of its image."""

    values: torch.Tensor
    """float32 [R]; nan where a score that it needs is missing."""
    improved: torch.Tensor
    """bool [R], the refinement scores above the image looked at."""
    regressed: torch.Tensor
    """bool [R], the refinement scores below it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GainInputs:
    """What a gain kind sees, [R] each; `difference` is V1 - V0, 0 on a stop, nan where a score is missing."""

    difference: torch.Tensor
    perfect: torch.Tensor
    """bool, V0 is 1, or the panel's best."""
    stopped: torch.Tensor
    groups: torch.Tensor


def gains(
    kind: str,
    score_before: torch.Tensor,
    score_after: torch.Tensor,
    stopped: torch.Tensor,
    groups: torch.Tensor,
    *,
    perfect: torch.Tensor | None = None,
) -> Gains:
    """Give each rollout's gain C(V0, V1, stop); the equations stand with each kind in this file.

    Args:
        kind: a name in `GAINS`.
        score_before: [R], V0 in [0, 1] or nan.
        score_after: [R], V1 in [0, 1] or nan; not read where `stopped`. A malformed critique that drew nothing is no
            stop: give V0 again, the image is unchanged.
        stopped: bool [R], a well-formed critique that asked for no further edit.
        groups: int [R], refinements of one image share an id; read by `repair`.
        perfect: bool [R], nothing could score above V0; left out, where V0 is 1. A panel whose weights do not add up to
            1 has another best.

    Raises:
        InputError: an unknown kind, or vectors of unlike length.

    Source: R3 (arXiv 2602.15772); AlphaGRPO for `repair`.

    >>> before, after = torch.tensor([0.5, 0.5, 1.0]), torch.tensor([1.0, float("nan"), float("nan")])
    >>> gains("paper", before, after, torch.tensor([False, True, True]), torch.zeros(3, dtype=torch.long)).values
    tensor([0.5000, 0.0000, 1.0000])
    """
    rule = GAINS.get(kind)
    if rule is None:
        raise InputError(f"unknown gain kind {kind!r}", hint=f"choose one of {', '.join(GAINS)}")
    if not score_before.shape == score_after.shape == stopped.shape == groups.shape or score_before.ndim != 1:
        raise InputError("scores, stops and groups are not vectors of one length", hint="one entry for each rollout")
    before, after = (torch.where(s.isfinite(), s.float(), torch.nan) for s in (score_before, score_after))
    difference = torch.where(stopped, before, after) - before
    perfect = before >= PERFECT_FROM if perfect is None else perfect
    inputs = GainInputs(difference=difference, perfect=perfect, stopped=stopped, groups=groups)
    values = torch.where(difference.isnan(), torch.nan, rule(inputs))
    return Gains(values=values, improved=difference > 0, regressed=difference < 0)


def paper(inputs: GainInputs) -> torch.Tensor:
    """Follow the paper: C = V1 - V0 if V0 < 1, else 1 for a stop and 0 otherwise.

    >>> no, yes = torch.tensor([False]), torch.tensor([True])
    >>> paper(GainInputs(difference=torch.tensor([-0.5]), perfect=yes, stopped=no, groups=torch.tensor([0])))
    tensor([0.])
    """
    return torch.where(inputs.perfect, inputs.stopped.float(), inputs.difference)


def released(inputs: GainInputs) -> torch.Tensor:
    """Follow the released code: C = 1 for a stop at V0 = 1, else V1 - V0, so that breaking a perfect image costs.

    >>> no, yes = torch.tensor([False]), torch.tensor([True])
    >>> released(GainInputs(difference=torch.tensor([-0.5]), perfect=yes, stopped=no, groups=torch.tensor([0])))
    tensor([-0.5000])
    """
    return torch.where(inputs.perfect & inputs.stopped, 1.0, inputs.difference)


def repair(inputs: GainInputs) -> torch.Tensor:
    """Give every refinement that does not improve its image the lowest gain of its group.

    C' = released gain;   C = min_{peers} C' where the critique did not stop and V1 <= V0, else C'

    An edit that changes nothing is then worth no more than the one that did the most harm; nor is a malformed critique,
    of which nothing was drawn.

    >>> no = torch.tensor([False, False, False])
    >>> change = torch.tensor([0.5, 0.0, -0.25])
    >>> repair(GainInputs(difference=change, perfect=no, stopped=no, groups=torch.zeros(3, dtype=torch.long)))
    tensor([ 0.5000, -0.2500, -0.2500])
    """
    gain = released(inputs)
    peers = peer_statistics(gain, inputs.groups)
    lowest = peers.lowest[peers.index].to(gain.dtype)
    return torch.where(~inputs.stopped & (inputs.difference <= 0), lowest, gain)


GAINS: dict[str, Callable[[GainInputs], torch.Tensor]] = {"paper": paper, "released": released, "repair": repair}
"""Gain kinds by their name in a recipe."""


def text_reward(
    value: torch.Tensor,
    well_formed: torch.Tensor,
    *,
    mode: Literal["gate", "add"] = default(AlgorithmSection, "format_mode"),
    weight: float = default(AlgorithmSection, "format_weight"),
) -> torch.Tensor:
    """Join what a text led to with its form: f (value + w) for `gate`, value + w f for `add`.

    Args:
        value: [R], score or gain; nan is missing.
        well_formed: bool [R], f.
        mode: `gate`: malformed texts earn 0 (released code). `add`: form earns its weight beside the value (paper).
        weight: w, 0 or more.

    Returns:
        float32 [R]; nan where the value is missing, except that a gated malformed text earns 0 whatever its value.

    Raises:
        InputError: another mode, or a weight that rewards malformed texts.

    Source: R3; the table at the top of this file.

    >>> value, form = torch.tensor([0.5, 0.5]), torch.tensor([True, False])
    >>> text_reward(value, form, mode="gate"), text_reward(value, form, mode="add")
    (tensor([0.6000, 0.0000]), tensor([0.6000, 0.5000]))
    """
    if mode not in ("gate", "add"):
        raise InputError(f"unknown format mode {mode!r}", hint="choose gate or add")
    if not weight >= 0:
        raise InputError(f"format weight {weight} rewards malformed texts", hint="give 0 or more")
    value = value.float()
    if mode == "gate":
        return torch.where(well_formed, value + weight, 0.0)
    return value + weight * well_formed.float()
