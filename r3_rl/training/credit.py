"""Scored rollouts -> segments with one advantage each: what the update learns from.

Shapes: R rollouts of a stage. The reward table stands in `algorithm/rewards.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from r3_rl.algorithm.advantage import Advantages, advantages
from r3_rl.algorithm.gain import Gains, gains
from r3_rl.algorithm.rewards import Format, reason_rewards, refine_rewards, text_reward
from r3_rl.rollout.collector import Drafts, Refinements
from r3_rl.rollout.tree import PERFECT, Node
from r3_rl.types import Critique, ImageSegment, Segment


@dataclass(frozen=True, kw_only=True)
class CreditSettings:
    """How scores become advantages (the `algorithm` section of a recipe)."""

    gain: str = "released"
    format_mode: Literal["gate", "add"] = "gate"
    format_weight: float = 0.1
    scale_rewards: Literal["none", "group", "batch"] = "none"

    @property
    def form(self) -> Format:
        """The format part of the reward."""
        return Format(mode=self.format_mode, weight=self.format_weight)


@dataclass(frozen=True, kw_only=True, eq=False)
class Credit:
    """A segment and what it earned compared with its peers."""

    segment: Segment
    advantage: float
    stage: Literal["plan", "draft", "critique", "refinement"]

    @property
    def objective(self) -> Literal["understanding", "generation"]:
        """Texts are understanding, denoising steps generation."""
        return "generation" if isinstance(self.segment, ImageSegment) else "understanding"


@dataclass(frozen=True, kw_only=True, eq=False)
class StageCredit:
    """Credits of one stage and the numbers to log. Segments without advantage are left out: they teach nothing."""

    credits: tuple[Credit, ...]
    metrics: dict[str, float]
    num_groups: int
    num_flat_groups: int
    """Groups whose rewards are all equal."""


def credit_drafts(drafts: Drafts, settings: CreditSettings) -> StageCredit:
    """Plans and drafts, compared with the drafts of the same prompt."""
    score = _totals([r.verdict.total if r.verdict else None for r in drafts.rounds])
    groups = torch.tensor(drafts.groups)
    rewards = reason_rewards(score, torch.tensor(drafts.well_formed), settings.form)
    text = advantages(rewards.text, groups, scale=settings.scale_rewards)
    image = advantages(rewards.image, groups, scale=settings.scale_rewards)
    out: list[Credit] = []
    for i, r in enumerate(drafts.rounds):
        if r.plan is not None:
            out.append(Credit(segment=r.plan, advantage=float(text.values[i]), stage="plan"))
        out.append(Credit(segment=r.image, advantage=float(image.values[i]), stage="draft"))
    metrics = {
        "refine/draft_score": _mean(score),
        "refine/frac_well_formed": sum(drafts.well_formed) / len(drafts.well_formed),
        **_common(score, text),
    }
    return _finish(out, metrics, image)


def credit_refinements(refinements: Refinements, settings: CreditSettings) -> StageCredit:
    """Critiques and refinements, compared with those of the same image."""
    before = _totals([n.score for n in refinements.nodes])
    stopped = torch.tensor([c.stop for c in refinements.critiques])
    well_formed = torch.tensor([c.well_formed for c in refinements.critiques])
    drawn = torch.tensor([image is not None for image in refinements.images])
    # a malformed critique drew nothing and is no stop: its image is unchanged
    after = torch.where(drawn, _totals([v.total if v else None for v in refinements.verdicts]), before)
    groups = torch.tensor(refinements.groups)
    gained = gains(settings.gain, before, after, stopped, groups)
    rewards = refine_rewards(
        gained, after, well_formed, drawn, settings.form, image="score" if settings.gain == "released" else "gain"
    )
    text = advantages(rewards.text, groups, scale=settings.scale_rewards)
    image = advantages(rewards.image, groups, applies=drawn, scale=settings.scale_rewards)
    out: list[Credit] = []
    for i, (critique, segment) in enumerate(zip(refinements.critiques, refinements.images, strict=True)):
        out.append(Credit(segment=critique.segment, advantage=float(text.values[i]), stage="critique"))
        if segment is not None:
            out.append(Credit(segment=segment, advantage=float(image.values[i]), stage="refinement"))
    return _finish(out, {**_refine_metrics(gained, before, after, well_formed, drawn), **_common(after, text)}, text)


def _refine_metrics(
    gained: Gains, before: torch.Tensor, after: torch.Tensor, well_formed: torch.Tensor, drawn: torch.Tensor
) -> dict[str, float]:
    return {
        "refine/gain_mean": _mean(after - before),
        "refine/final_score": _mean(after),
        "refine/frac_improved": _mean(gained.improved.float()),
        "refine/frac_regressed": _mean(gained.regressed.float()),
        "refine/frac_stopped": _mean(gained.stopped.float()),
        "refine/frac_well_formed": _mean(well_formed.float()),
        **decisions(before, stopped=gained.stopped, drawn=drawn),
    }


def decisions(score: torch.Tensor, *, stopped: torch.Tensor, drawn: torch.Tensor) -> dict[str, float]:
    """Shares of wrong images that a critique wants edited and of right images that it leaves alone."""
    right = score >= PERFECT
    return {
        "refine/frac_wrong_edited": _mean(drawn[~right & ~score.isnan()].float()),
        "refine/frac_right_kept": _mean(stopped[right].float()),
    }


def credit_critiques(nodes: Sequence[Node], critiques: Sequence[Critique], groups: Sequence[int],
                     settings: CreditSettings) -> StageCredit:
    """Critiques alone, without refinement: 1 for a decision that agrees with the panel (stop when the image is
    perfect, an edit when it is not), else 0; the understanding-only baseline."""
    score = _totals([n.score for n in nodes])
    stopped = torch.tensor([c.stop for c in critiques])
    well_formed = torch.tensor([c.well_formed for c in critiques])
    agrees = (stopped == (score >= PERFECT)).float()
    text = advantages(
        text_reward(agrees, well_formed, settings.form), torch.tensor(groups), scale=settings.scale_rewards
    )
    out = [
        Credit(segment=c.segment, advantage=float(text.values[i]), stage="critique") for i, c in enumerate(critiques)
    ]
    drawn = well_formed & ~stopped
    metrics = {
        "refine/frac_well_formed": _mean(well_formed.float()),
        "refine/frac_stopped": _mean(stopped.float()),
        **decisions(score, stopped=stopped, drawn=drawn),
        **_common(score, text),
    }
    return _finish(out, metrics, text)


def _common(score: torch.Tensor, text: Advantages) -> dict[str, float]:
    return {
        "reward": text.reward_mean,
        "reward_std": text.reward_std,
        "frac_reward_zero_std": text.frac_zero_variance,
        "scores/missing_fraction": float(score.isnan().float().mean()),
    }


def _finish(credits: list[Credit], metrics: dict[str, float], compared: Advantages) -> StageCredit:
    useful = tuple(c for c in credits if c.advantage != 0 and _trainable(c.segment))
    clean = {k: v for k, v in metrics.items() if not math.isnan(v)}
    return StageCredit(
        credits=useful,
        metrics=clean,
        num_groups=compared.num_groups,
        num_flat_groups=len(compared.zero_variance_groups),
    )


def _trainable(segment: Segment) -> bool:
    return not isinstance(segment, ImageSegment) or len(segment.times) > 0


def _totals(values: Sequence[float | None]) -> torch.Tensor:
    return torch.tensor([math.nan if v is None else v for v in values])


def _mean(values: torch.Tensor) -> float:
    present = values[~values.isnan()]
    return float(present.mean()) if len(present) else math.nan
