"""Scored rollouts -> segments with one advantage each: what the update learns from.

Shapes: R rollouts of a stage. The reward table stands in `algorithm/rewards.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from r3_rl.algorithm.advantage import Advantages, advantages
from r3_rl.algorithm.gain import Gains, gains
from r3_rl.algorithm.rewards import Format, reason_rewards, refine_rewards, text_reward
from r3_rl.nodes import Node, numbered
from r3_rl.observe.metrics import Numbers
from r3_rl.types import ImageSegment, Segment, TextSegment, Trajectory, Verdict

Rewards = Callable[[Sequence[Verdict], Sequence[int]], Sequence[float | None]]
"""The panel's `rewards`: verdicts and their groups -> one number each, None where it is missing."""


def totals(verdicts: Sequence[Verdict], groups: Sequence[int]) -> list[float | None]:
    """The verdicts' totals, whatever the groups."""
    return [verdict.total for verdict in verdicts]


@dataclass(frozen=True, kw_only=True)
class CreditSettings:
    """How scores become advantages (the `algorithm` section of a recipe)."""

    gain: str = "paper"
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
    stage: str
    """plan, draft, critique or refinement."""

    @property
    def objective(self) -> Literal["understanding", "generation"]:
        """Texts are understanding, images generation."""
        return "generation" if isinstance(self.segment, ImageSegment) else "understanding"


def means(items: Mapping[str, torch.Tensor]) -> Numbers:
    """The mean of every tensor over its items; nan is missing, and a mean of nothing is left out.

    >>> means({"reward": torch.tensor([0.5, math.nan, 1.0]), "kl": torch.tensor([])})
    Numbers({'reward': 0.75}, {'reward': 2.0})
    """
    present = {name: values[~values.isnan()] for name, values in items.items()}
    return Numbers(
        {name: values.float().mean() for name, values in present.items() if len(values)},
        {name: len(values) for name, values in present.items()},
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class StageCredit:
    """Credits of one stage and the numbers to log. Segments without advantage are left out: they teach nothing."""

    credits: tuple[Credit, ...]
    metrics: Numbers
    num_groups: int
    num_flat_groups: int
    """Groups without spread, in the rewards of texts and of images alike."""


def credit_drafts(drafts: Sequence[Node], settings: CreditSettings, rewards: Rewards = totals) -> StageCredit:
    """Compare plans with the plans of the same prompt, and images with those of the same plan, or of the same prompt
    where a plan has one image.

    A plan's reward is the mean over its images that have a score: it is not blamed for what its painter did once.

    Args:
        drafts: [R] drafts, those of a plan side by side, all plans with equally many.
        settings: how rewards become advantages.
        rewards: how the verdicts become rewards, given the prompts' numbers.
    """
    score = _scores(drafts)
    plans = [plan for plan in dict.fromkeys(node.parent for node in drafts) if plan is not None and plan.sample]
    m = len(drafts) // len(plans) if plans else 1
    well_formed = torch.tensor([plan.well_formed for plan in plans] or [True] * len(drafts))
    prompts = numbered([node.root for node in drafts])
    verdicts = [node.verdict or Verdict(total=None) for node in drafts]
    reward = reason_rewards(_totals(rewards(verdicts, prompts)), well_formed, settings.form, images_per_plan=m)
    text = advantages(reward.text, torch.tensor(prompts[::m]), scale=settings.scale_rewards)
    painted = torch.tensor(numbered([node.group for node in drafts]))
    image = advantages(reward.image, painted, scale=settings.scale_rewards)
    credits = _interleaved(plans, text.values, drafts, image.values)
    items = {
        **draft_scores(drafts),
        "refine/frac_well_formed": well_formed,
        **_common(score, reward.text, text),
    }
    return _finish(credits, items, (prompts[::m], text), (prompts, image))


def draft_scores(drafts: Sequence[Node]) -> dict[str, torch.Tensor]:
    """The scores of the drafts, whatever is trained on them: a gain is to be read next to their mean."""
    return {"refine/draft_score": _scores(drafts)}


def credit_refinements(
    critiques: Sequence[Node], refined: Sequence[Node | None], settings: CreditSettings
) -> StageCredit:
    """Compare critiques with the critiques below the same root, and refinements with those by the same critique, or
    below the same root where a critique has one.

    A critique's gain is the mean over its refinements, so that neither is blamed for the other.

    Args:
        critiques: each of an image; all with equally many rows.
        refined: [R], the image of each row of the critiques; None where the critique stopped or was malformed.
        settings: how rewards become advantages.
    """
    m = len(refined) // len(critiques)
    rows = [critique for critique in critiques for _ in range(m)]
    images = [_looked_at(critique) for critique in rows]
    before = _scores(images)
    stopped = torch.tensor([c.critique is not None and c.critique.stop for c in rows])
    well_formed = torch.tensor([c.well_formed for c in rows])
    drawn = torch.tensor([image is not None for image in refined])
    # a malformed critique drew nothing and is no stop: its image is unchanged
    after = torch.where(drawn, _scores(refined), before)
    groups = numbered([c.root for c in rows])
    perfect = torch.tensor([image.perfect for image in images], dtype=torch.bool)
    gained = gains(settings.gain, before, after, stopped, torch.tensor(groups), perfect=perfect)
    rewards = refine_rewards(
        gained,
        after,
        well_formed,
        settings.form,
        image="score" if settings.gain == "released" else "gain",
        images_per_critique=m,
    )
    text = advantages(rewards.text, torch.tensor(groups[::m]), scale=settings.scale_rewards)
    drawers = torch.tensor(groups if m == 1 else [i // m for i in range(len(rows))])
    image = advantages(rewards.image, drawers, applies=drawn, scale=settings.scale_rewards)
    credits = _interleaved(critiques, text.values, refined, image.values)
    items = {
        **_refine_items(gained, perfect, before, after, well_formed, drawn),
        **_common(after, rewards.text, text),
    }
    return _finish(credits, items, (groups[::m], text), (groups, image))


def _interleaved(
    texts: Sequence[Node], of_text: torch.Tensor, images: Sequence[Node | None], of_image: torch.Tensor
) -> list[Credit]:
    """Each text, then its images: the update packs them side by side."""
    m = len(images) // len(texts) if texts else 1
    out: list[Credit] = []
    for i, node in enumerate(images):
        if texts and i % m == 0:
            out.append(_credit(texts[i // m], of_text[i // m]))
        if node is not None:
            out.append(_credit(node, of_image[i]))
    return out


def _credit(node: Node, advantage: torch.Tensor) -> Credit:
    assert node.sample is not None
    return Credit(segment=node.sample, advantage=float(advantage), stage=node.stage)


def _looked_at(critique: Node) -> Node:
    assert critique.parent is not None
    return critique.parent


def _refine_items(
    gained: Gains,
    perfect: torch.Tensor,
    before: torch.Tensor,
    after: torch.Tensor,
    well_formed: torch.Tensor,
    drawn: torch.Tensor,
) -> dict[str, torch.Tensor]:
    return {
        "refine/gain_mean": after - before,
        "refine/final_score": after,
        "refine/frac_improved": gained.improved,
        "refine/frac_regressed": gained.regressed,
        "refine/frac_stopped": gained.stopped,
        "refine/frac_well_formed": well_formed,
        "tree/frac_perfect": perfect,
        **decisions(perfect, stopped=gained.stopped, drawn=drawn),
    }


def decisions(right: torch.Tensor, *, stopped: torch.Tensor, drawn: torch.Tensor) -> dict[str, torch.Tensor]:
    """Whether each wrong image is to be edited, says its critique, and whether each right image is left alone."""
    return {"refine/frac_wrong_edited": drawn[~right], "refine/frac_right_kept": stopped[right]}


def whole_trajectories(trajectories: Sequence[Trajectory]) -> dict[str, torch.Tensor]:
    """From the draft to the last image drawn, however many rounds lie between; a missing score is missing."""
    first = _totals([t.rounds[0].verdict.total if t.rounds[0].verdict else None for t in trajectories])
    last = _totals([t.final.verdict.total if t.final.verdict else None for t in trajectories])
    gain = (last - first)[~(last - first).isnan()]
    return {
        "refine/gain_mean": gain,
        "refine/final_score": last,
        "refine/frac_improved": gain > 0,
        "refine/frac_regressed": gain < 0,
    }


def credit_trajectories(leaves: Sequence[Node], settings: CreditSettings) -> StageCredit:
    """One advantage a trajectory, for every text and image below its root: what its last image scores, compared with
    the trajectories that began at the same image. As they share the first image, a sum of gains compares alike. What
    several trajectories share has the mean of their advantages.

    A trajectory that ends in a malformed text earns that text's reward.

    Args:
        leaves: [R], where each row ends: an image, or a critique that ended the loop.
        settings: how rewards become advantages.
    """
    score = _scores([next(node for node in reversed(leaf.way) if node.verdict is not None) for leaf in leaves])
    well_formed = torch.tensor([leaf.well_formed for leaf in leaves])
    reward = text_reward(score, well_formed, settings.form)
    groups = numbered([leaf.root for leaf in leaves])
    compared = advantages(reward, torch.tensor(groups), scale=settings.scale_rewards)
    through: dict[Node, list[torch.Tensor]] = {}
    for leaf, value in zip(leaves, compared.values, strict=True):
        for node in leaf.way[1:]:
            through.setdefault(node, []).append(value)
    credits = [_credit(node, torch.stack(values).mean()) for node, values in through.items()]
    said = [node for node in through if node.critique is not None]
    right = torch.tensor([_looked_at(node).perfect for node in said], dtype=torch.bool)
    stopped = torch.tensor([node.said.stop for node in said], dtype=torch.bool)
    drawn = torch.tensor([bool(node.said.instruction) for node in said], dtype=torch.bool)
    items = {
        "refine/frac_well_formed": torch.tensor([node.well_formed for node in said]),
        "refine/frac_stopped": stopped,
        "tree/frac_perfect": torch.tensor([leaf.root.perfect for leaf in leaves]),
        **decisions(right, stopped=stopped, drawn=drawn),
        **_common(score, reward, compared),
    }
    return _finish(credits, items, (groups, compared))


def credit_critiques(critiques: Sequence[Node], settings: CreditSettings) -> StageCredit:
    """Critiques alone, without refinement: 1 for a decision that agrees with the panel (stop when the image is
    perfect, an edit when it is not), else 0; the understanding-only baseline."""
    images = [_looked_at(critique) for critique in critiques]
    score = _scores(images)
    stopped = torch.tensor([c.critique is not None and c.critique.stop for c in critiques], dtype=torch.bool)
    well_formed = torch.tensor([c.well_formed for c in critiques], dtype=torch.bool)
    perfect = torch.tensor([image.perfect for image in images], dtype=torch.bool)
    agrees = (stopped == perfect).float()
    groups = numbered([c.root for c in critiques])
    rewards = text_reward(agrees, well_formed, settings.form)
    text = advantages(rewards, torch.tensor(groups), scale=settings.scale_rewards)
    credits = [_credit(critique, advantage) for critique, advantage in zip(critiques, text.values, strict=True)]
    drawn = well_formed & ~stopped
    items = {
        "refine/frac_well_formed": well_formed,
        "refine/frac_stopped": stopped,
        **decisions(perfect, stopped=stopped, drawn=drawn),
        **_common(score, rewards, text),
    }
    return _finish(credits, items, (groups, text))


def _common(score: torch.Tensor, rewards: torch.Tensor, text: Advantages) -> dict[str, torch.Tensor]:
    return {
        "reward": rewards,
        "reward_std": torch.full((text.num_groups,), text.reward_std),
        "frac_reward_missing": score.isnan(),
    }


def _finish(
    credits: list[Credit], items: Mapping[str, torch.Tensor], *compared: tuple[Sequence[int], Advantages]
) -> StageCredit:
    """`compared`: the prompt (or node) of each advantage and the advantages, of texts and, if the stage draws, of
    images. A group that teaches either is not flat."""
    useful = tuple(c for c in credits if c.advantage != 0 and _trainable(c.segment))
    rows = [
        (group, float(v), bool(m)) for gs, a in compared for group, v, m in zip(gs, a.values, a.missing, strict=True)
    ]
    num_groups = len({group for group, _, missing in rows if not missing})
    learning = {group for group, value, _ in rows if value != 0}
    num_flat = num_groups - len(learning)
    texts = [c.segment for c in credits if isinstance(c.segment, TextSegment)]
    images = sum(isinstance(c.segment, ImageSegment) for c in credits)
    lengths = torch.tensor([float(len(t.token_ids)) for t in texts])
    found = means(
        {
            **items,
            "completions/mean_length": lengths,
            "completions/clipped_ratio": torch.tensor([not t.ended for t in texts]),
            "frac_reward_zero_std": torch.arange(num_groups) < num_flat,
        }
    )
    counted = {
        **({"image/count": float(images)} if images else {}),
        **({"completions/max_length": float(lengths.max())} if texts else {}),
    }
    return StageCredit(
        credits=useful,
        metrics=found | counted,
        num_groups=num_groups,
        num_flat_groups=num_flat,
    )


def _trainable(segment: Segment) -> bool:
    return not isinstance(segment, ImageSegment) or len(segment.log_probs) > 0


def _scores(images: Sequence[Node | None]) -> torch.Tensor:
    return _totals([image.score if image else None for image in images])


def _totals(values: Sequence[float | None]) -> torch.Tensor:
    return torch.tensor([math.nan if v is None else v for v in values])
