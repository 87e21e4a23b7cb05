"""What the rollouts of each kind of step earn: drafts their score, critiques and refinements the gain, episodes what
their last image scores, critiques by themselves whether their decision is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from r3_rl.algorithm.gain import gains
from r3_rl.algorithm.rewards import text_reward
from r3_rl.nodes import Node, numbered
from r3_rl.training.credit import CreditSettings, StageCredit, compare, credit, finish
from r3_rl.training.figures import draft_scores, of_critiques, scores, tensor
from r3_rl.types import Verdict

Rewards = Callable[[Sequence[Verdict], Sequence[int]], Sequence[float | None]]
"""The panel's `rewards`: verdicts and their groups -> one number each, None where it is missing."""


def totals(verdicts: Sequence[Verdict], groups: Sequence[int]) -> list[float | None]:
    """The verdicts' totals, whatever the groups."""
    return [verdict.total for verdict in verdicts]


def credit_drafts(drafts: Sequence[Node], settings: CreditSettings, rewards: Rewards = totals) -> StageCredit:
    """Drafts earn their score V, a plan the mean of its drafts': it is not blamed for what its painter did once.

    Args:
        drafts: [R], with the plans above them or without.
        settings: how rewards become advantages.
        rewards: how the verdicts become rewards, given the prompts' numbers.
    """
    verdicts = [node.verdict or Verdict(total=None) for node in drafts]
    worth = tensor(rewards(verdicts, numbered([node.root for node in drafts])))
    plans = dict.fromkeys(node.above for node in drafts)
    items = {
        **draft_scores(drafts),
        "refine/frac_well_formed": torch.tensor([plan.well_formed for plan in plans]),
        "frac_reward_missing": scores(drafts).isnan(),
    }
    return credit(drafts, worth, settings, items=items)


def credit_refinements(ends: Sequence[Node], settings: CreditSettings) -> StageCredit:
    """Refinements earn their gain over the image looked at, a critique the mean of its refinements' gains or that of
    its stop.

    Args:
        ends: [R], where each row ends: a refinement, or a critique that stopped or was malformed.
        settings: how rewards become advantages. With gain `released` a refinement earns its score.
    """
    critiques = [end if end.critique is not None else end.above for end in ends]
    looked_at = [critique.above for critique in critiques]
    before, drawn = scores(looked_at), torch.tensor([end.critique is None for end in ends], dtype=torch.bool)
    # a malformed critique drew nothing and is no stop: its image is unchanged
    after = torch.where(drawn, scores(ends), before)
    stopped = torch.tensor([critique.said.stop for critique in critiques], dtype=torch.bool)
    perfect = torch.tensor([image.perfect for image in looked_at], dtype=torch.bool)
    peers = torch.tensor(numbered([critique.group for critique in critiques]))
    gained = gains(settings.gain, before, after, stopped, peers, perfect=perfect)
    items = {
        **of_critiques(critiques),
        "refine/gain_mean": after - before,
        "refine/final_score": after,
        "refine/frac_improved": gained.improved,
        "refine/frac_regressed": gained.regressed,
        "tree/frac_perfect": perfect,
        "frac_reward_missing": after.isnan(),
    }
    image_worth = after if settings.gain == "released" else None
    return credit(ends, gained.values, settings, image_worth=image_worth, items=items)


def credit_critiques(critiques: Sequence[Node], settings: CreditSettings) -> StageCredit:
    """Critiques without refinement earn 1 for a decision that agrees with the panel (stop when the image is perfect, an
    edit when it is not), else 0: the understanding-only baseline."""
    looked_at = [critique.above for critique in critiques]
    agrees = torch.tensor([float(c.said.stop == c.above.perfect) for c in critiques])
    items = {**of_critiques(critiques), "frac_reward_missing": scores(looked_at).isnan()}
    return credit(critiques, agrees, settings, items=items)


def credit_trajectories(ends: Sequence[Node], settings: CreditSettings) -> StageCredit:
    """One advantage a trajectory, for every text and image below its root: what its last image scores, compared with
    the trajectories that began at the same image. As they share the first image, a sum of gains compares alike. What
    several trajectories share has the mean of their advantages.

    A trajectory that ends in a malformed text earns that text's reward.

    Args:
        ends: where each trajectory ends: an image, or a critique that ended the loop.
        settings: how rewards become advantages.
    """
    last = [next(node for node in reversed(end.way) if node.verdict is not None) for end in ends]
    well_formed = torch.tensor([end.well_formed for end in ends], dtype=torch.bool)
    found = compare([end.root for end in ends], text_reward(scores(last), well_formed, settings.form), settings)
    through: dict[Node, list[torch.Tensor]] = {}
    for end, value in zip(ends, found.advantage, strict=True):
        for node in end.way[1:]:
            through.setdefault(node, []).append(value)
    items = {
        **of_critiques([node for node in through if node.critique is not None]),
        "tree/frac_perfect": torch.tensor([end.root.perfect for end in ends]),
        "frac_reward_missing": scores(last).isnan(),
        "reward": found.reward,
        "reward_std": found.spread,
    }
    advantage = {node: float(torch.stack(values).mean()) for node, values in through.items()}
    return finish(advantage, [found], items)
