"""What the rollouts of each kind of step earn: drafts their score, critiques and refinements the gain, episodes what
their last image scores, critiques by themselves whether their decision is right, answers whether they are right."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from r3_rl import ranks
from r3_rl.algorithm.gain import gains
from r3_rl.modalities import DrawnSegment, TextSegment
from r3_rl.nodes import Node, numbered
from r3_rl.stages.answer_rules import worth
from r3_rl.stages.protocol import said
from r3_rl.training.credit import CreditSettings, StageCredit, compare, credit, finish, with_form
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
    worth = _tensor(rewards(verdicts, numbered([node.root for node in drafts])))
    drawn, plans = scores(drafts), dict.fromkeys(node.above for node in drafts)
    items = {
        "refine/draft_score": drawn,
        "refine/frac_well_formed": torch.tensor([plan.well_formed for plan in plans]),
        "frac_reward_missing": drawn.isnan(),
    }
    return credit(drafts, worth, settings, items=items)


def credit_refinements(ends: Sequence[Node], settings: CreditSettings) -> StageCredit:
    """Refinements earn the gain over the image looked at, a critique the mean of its refinements' gains or that of
    its stop, and `decision_weight` if it decided rightly whether to go on.

    Args:
        ends: [R], where each row ends: a refinement, or a critique that stopped or was malformed.
        settings: how rewards become advantages. With gain `released` a refinement earns its score.
    """
    critiques = [end if end.critique is not None else end.above for end in ends]
    looked_at = [critique.above for critique in critiques]
    before, drawn = scores(looked_at), torch.tensor([end.critique is None for end in ends], dtype=torch.bool)
    # a malformed critique drew nothing and is no stop: its image is unchanged
    after = torch.where(drawn, scores(ends), before)
    decisions = of_critiques(critiques)
    perfect = torch.tensor([image.perfect for image in looked_at], dtype=torch.bool)
    peers = torch.tensor(numbered([critique.group for critique in critiques]))
    gained = gains(settings.gain, before, after, decisions["refine/frac_stopped"], peers, perfect=perfect)
    items = {
        **decisions,
        "refine/gain_mean": after - before,
        "refine/final_score": after,
        "refine/frac_improved": gained.improved,
        "refine/frac_regressed": gained.regressed,
        "tree/frac_perfect": perfect,
        "frac_reward_missing": after.isnan(),
    }
    worth = gained.values + settings.decision_weight * right_decisions(critiques)
    # whoever drew had asked for an edit, so at one image the decision is worth the same to all refinements and cancels
    image_worth = after if settings.gain == "released" else None
    return credit(ends, worth, settings, image_worth=image_worth, items=items)


def right_decisions(critiques: Sequence[Node]) -> torch.Tensor:
    """1 for a critique that agrees with the panel, a stop at a perfect image or an edit at another, else 0; float32
    [R]. A malformed one decides nothing."""
    read = [(node.critique, node.above.perfect) for node in critiques]
    agrees = [c is not None and c.well_formed and c.stop == perfect for c, perfect in read]
    return torch.tensor(agrees, dtype=torch.float32)


def credit_critiques(critiques: Sequence[Node], settings: CreditSettings) -> StageCredit:
    """Critiques without refinement earn 1 for a decision that agrees with the panel (stop when the image is perfect, an
    edit when it is not), else 0: the understanding-only baseline."""
    looked_at, decisions = [critique.above for critique in critiques], of_critiques(critiques)
    items = {**decisions, "frac_reward_missing": scores(looked_at).isnan()}
    return credit(critiques, right_decisions(critiques), settings, items=items)


def credit_answers(answers: Sequence[Node], settings: CreditSettings) -> StageCredit:
    """An answer earns what the rule of its question says (`stages.answer_rules`), and its form."""
    right = torch.tensor([worth(_words(a), a.prompt.columns) for a in answers])
    formed = torch.tensor([a.well_formed for a in answers], dtype=torch.bool)
    return credit(answers, right, settings, items={"answer/frac_right": right, "answer/frac_well_formed": formed})


def _words(answer: Node) -> str:
    return said(answer.sample.text) if isinstance(answer.sample, TextSegment) else ""


def credit_trajectories(ends: Sequence[Node], settings: CreditSettings) -> StageCredit:
    """One advantage a trajectory, for every text and image below its root: what its last image scores, compared with
    the trajectories that began at the same image. As they share the first image, a sum of gains compares alike. What
    several trajectories share has the mean of their advantages.

    A trajectory that ends in a malformed text earns that text's reward.

    Args:
        ends: where each trajectory ends: an image, or a critique that ended the loop.
        settings: how rewards become advantages.
    """
    last = scores([next(node for node in reversed(end.way) if node.verdict is not None) for end in ends])
    found = compare([end.root for end in ends], with_form(last, ends, settings), settings)
    through: dict[Node, list[torch.Tensor]] = {}
    for end, value in zip(ends, found.advantage, strict=True):
        for node in end.way[1:]:
            through.setdefault(node, []).append(value)
    items = {
        **of_critiques([node for node in through if node.critique is not None]),
        "tree/frac_perfect": torch.tensor([end.root.perfect for end in ends]),
        "frac_reward_missing": last.isnan(),
        "reward": found.reward,
        "reward_std": found.spread,
    }
    advantage = {node: float(torch.stack(values).mean()) for node, values in through.items()}
    return finish(advantage, [found], items, frozen=settings.frozen_stages)


def of_critiques(critiques: Sequence[Node]) -> dict[str, torch.Tensor]:
    """How critiques decided: whether each wrong image is to be edited, and whether each right one is left alone.

    Args:
        critiques: one a rollout; those of one image in any order.
    """
    right = torch.tensor([node.above.perfect for node in critiques], dtype=torch.bool)
    read = [node.critique for node in critiques if node.critique is not None]
    stopped = torch.tensor([critique.stop for critique in read], dtype=torch.bool)
    edits = torch.tensor([bool(critique.instruction) for critique in read], dtype=torch.bool)
    return {
        "refine/frac_well_formed": torch.tensor([node.well_formed for node in critiques], dtype=torch.bool),
        "refine/frac_stopped": stopped,
        "refine/frac_wrong_edited": edits[~right],
        "refine/frac_right_kept": stopped[right],
    }


def whole_trajectories(ends: Sequence[Node]) -> dict[str, torch.Tensor]:
    """From the draft to the last image drawn, however many rounds lie between; a missing score is missing.

    Args:
        ends: where each trajectory ends: an image, or a critique that ended the loop.
    """
    drawn = [[node for node in end.way if isinstance(node.sample, DrawnSegment)] for end in ends]
    first, last = scores([images[0] for images in drawn]), scores([images[-1] for images in drawn])
    gain = (last - first)[~(last - first).isnan()]
    return {
        "refine/gain_mean": gain,
        "refine/final_score": last,
        "refine/frac_improved": gain > 0,
        "refine/frac_regressed": gain < 0,
    }


def scores(images: Sequence[Node]) -> torch.Tensor:
    """The panel's totals of images, float32 [R]; nan where one is missing."""
    return _tensor([image.score for image in images])


def _tensor(values: Sequence[float | None]) -> torch.Tensor:
    return torch.tensor([math.nan if v is None else v for v in values], dtype=torch.float32)


def shared_noise(leaves: Sequence[Node]) -> dict[str, float]:
    """`ranks/shared_noise`: share of this process's rollouts whose random numbers another process draws too, since they
    have one row's name in both. Nothing in a single process. All processes call it together."""
    if ranks.count() == 1:
        return {}
    rows = [{leaf.id.row for leaf in leaves}, *map(set, ranks.everyone([leaf.id.row for leaf in leaves]))]
    own, others = rows[0], set().union(*(other for rank, other in enumerate(rows[1:]) if rank != ranks.rank()))
    return {"ranks/shared_noise": len(own & others) / max(len(own), 1)}
