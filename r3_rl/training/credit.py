"""Credit over the tree of a step: what its ends are worth -> one advantage for each text and each image.

A text earns the mean over its children, and its form. A node is compared with its siblings; without siblings, with the
nodes of its stage below the same root. What ends are worth is `training/earned.py`; the reward table is in
`algorithm/gain.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from r3_rl.algorithm.advantage import advantages, peer_statistics
from r3_rl.algorithm.gain import text_reward
from r3_rl.modalities import DrawnSegment, Objective, Segment, TextSegment
from r3_rl.nodes import Node, numbered
from r3_rl.observe.numbers import Numbers, means
from r3_rl.recipe.base import default
from r3_rl.recipe.learning import AlgorithmSection


@dataclass(frozen=True, kw_only=True)
class CreditSettings:
    """How scores become advantages (the `algorithm` section of a recipe)."""

    gain: str = default(AlgorithmSection, "gain")
    format_mode: Literal["gate", "add"] = default(AlgorithmSection, "format_mode")
    format_weight: float = default(AlgorithmSection, "format_weight")
    decision_weight: float = default(AlgorithmSection, "decision_weight")
    scale_rewards: Literal["none", "group", "batch"] = default(AlgorithmSection, "scale_rewards")
    frozen_stages: Sequence[str] = default(AlgorithmSection, "frozen_stages")
    """Stages whose segments have no credit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Credit:
    """A segment and what it earned compared with its peers."""

    segment: Segment
    advantage: float
    stage: str
    """plan, draft, critique or refinement."""

    @property
    def objective(self) -> Objective:
        """Texts are understanding, images generation."""
        return self.segment.objective


@dataclass(frozen=True, kw_only=True, eq=False)
class StageCredit:
    """Credits of one stage and the numbers to log. Segments without advantage are left out: they teach nothing."""

    credits: tuple[Credit, ...]
    metrics: Numbers
    num_groups: int
    """Roots below which something has a reward."""
    num_flat_groups: int
    """Those of them below which neither texts nor images have any spread."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Compared:
    """Nodes of one kind with their rewards and advantages, in order."""

    nodes: tuple[Node, ...]
    reward: torch.Tensor
    """float32 [N]; nan is missing."""
    advantage: torch.Tensor
    """float32 [N]; 0 where the reward is missing and where peers are equal."""
    spread: torch.Tensor
    """float32 [G], the mean std of the rewards of a group, once for each group that has any."""


def compare(nodes: Sequence[Node], reward: torch.Tensor, settings: CreditSettings) -> Compared:
    """Compare each node with its peers (`Node.group`).

    Args:
        nodes: N of one stage.
        reward: [N]; nan is missing.
        settings: what a difference is divided by.

    >>> from r3_rl.nodes import prompt_roots
    >>> from r3_rl.types import Prompt
    >>> (root,) = prompt_roots([Prompt(text="a cross")], num_rows=2)
    >>> compare(root.children("plan", 2), torch.tensor([1.0, 0.0]), CreditSettings()).advantage
    tensor([ 0.5000, -0.5000])
    """
    found = advantages(reward, torch.tensor(numbered([node.group for node in nodes])), scale=settings.scale_rewards)
    spread = torch.full((found.num_groups,), found.reward_std)
    return Compared(nodes=tuple(nodes), reward=reward, advantage=found.values, spread=spread)


def credit(
    ends: Sequence[Node],
    worth: torch.Tensor,
    settings: CreditSettings,
    *,
    image_worth: torch.Tensor | None = None,
    items: Mapping[str, torch.Tensor],
) -> StageCredit:
    """Credit the last text and the last image on the way to each end.

    Args:
        ends: where each of R rollouts ends: an image, or a text below which nothing was drawn.
        worth: [R], what each end is worth to the text above it, or that it is; nan is missing.
        settings: how rewards become advantages.
        image_worth: [R], what it is worth to an image; left out, the same.
        items: what is logged of this step in addition.

    Returns:
        Credits in the order of the ends, each text before its images.
    """
    drawn = [i for i, end in enumerate(ends) if isinstance(end.sample, DrawnSegment)]
    of_image = worth if image_worth is None else image_worth
    images = compare([ends[i] for i in drawn], of_image[drawn].float(), settings)
    # the end itself if it is a text, else the text that it was drawn after
    above = [end if end.parent is None or isinstance(end.sample, TextSegment) else end.parent for end in ends]
    said = [text for text in above if isinstance(text.sample, TextSegment)]
    compared = [images]
    if texts := list(dict.fromkeys(said)):
        # without plans there is no text above any draft; else there is one above, or in the place of, every end
        mean = peer_statistics(worth, torch.tensor(numbered(said))).mean.float()
        compared = [compare(texts, with_form(mean, texts, settings), settings), images]
    value = {node: float(a) for kind in compared for node, a in zip(kind.nodes, kind.advantage, strict=True)}
    in_order = dict.fromkeys(node for pair in zip(above, ends, strict=True) for node in pair if node in value)
    logged = {**items, "reward": compared[0].reward, "reward_std": compared[0].spread}
    return finish({node: value[node] for node in in_order}, compared, logged, frozen=settings.frozen_stages)


def with_form(value: torch.Tensor, texts: Sequence[Node], settings: CreditSettings) -> torch.Tensor:
    """The rewards [N] of N texts that led to `value` [N] and have good form or not."""
    well_formed = torch.tensor([text.well_formed for text in texts], dtype=torch.bool)
    return text_reward(value, well_formed, mode=settings.format_mode, weight=settings.format_weight)


def finish(
    advantage: Mapping[Node, float],
    compared: Sequence[Compared],
    items: Mapping[str, torch.Tensor],
    *,
    frozen: Sequence[str],
) -> StageCredit:
    """Close a step's credit: leave out what teaches nothing and frozen stages, count the groups, take the means of
    `items`."""
    with_reward, learning = set(), set()
    for kind in compared:
        for node, there, value in zip(kind.nodes, kind.reward.isfinite(), kind.advantage, strict=True):
            with_reward |= {node.root} if there else set()
            learning |= {node.root} if value != 0 and node.stage not in frozen else set()
    flat = len(with_reward) - len(learning)
    texts = [node.sample for node in advantage if isinstance(node.sample, TextSegment)]
    num_images = len(advantage) - len(texts)
    lengths = torch.tensor([float(len(text.token_ids)) for text in texts])
    found = means(
        {
            **items,
            "completions/mean_length": lengths,
            "completions/clipped_ratio": torch.tensor([not text.ended for text in texts]),
            "frac_reward_zero_std": torch.arange(len(with_reward)) < flat,
        }
    )
    counted = {
        **({"image/count": float(num_images)} if num_images else {}),
        **({"completions/max_length": float(lengths.max())} if texts else {}),
    }
    credits = (
        Credit(segment=node.sample, advantage=value, stage=node.stage)
        for node, value in advantage.items()
        # an image by the ODE alone has nothing to score again
        if value != 0 and node.stage not in frozen and node.sample is not None and len(node.sample.log_probs) > 0
    )
    return StageCredit(
        credits=tuple(credits), metrics=found | counted, num_groups=len(with_reward), num_flat_groups=flat
    )
