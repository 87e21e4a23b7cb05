"""What a training step collects: the schedules of Tree-RL and its baselines.

tree: reason steps (one, or `reason_steps`) and a reflect-refine step in turn. full: whole trajectories. draft_only:
reason steps only.
critique_only: critiques of drafts, judged by whether their decision is right. cotrain: the last two in turn.
progressive: begins as cotrain and becomes tree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from r3_rl.balance.progressive import joint_share
from r3_rl.rollout.collector import Collector, Drafts, Refinements
from r3_rl.rollout.episode import make_critiques, round_seed
from r3_rl.rollout.tree import Node, NodePool
from r3_rl.training.credit import (
    Credit,
    CreditSettings,
    StageCredit,
    credit_critiques,
    credit_drafts,
    credit_refinements,
    draft_score,
)
from r3_rl.types import ImageSegment, Prompt, TextSegment, Trajectory

SyntheticNodes = Callable[[int, int], list[Node]]
"""(count, seed) -> scored images that no policy drew."""


@dataclass(kw_only=True, eq=False)
class Collected:
    """A step's rollouts with their credits."""

    stages: list[StageCredit]
    drafts: Drafts | None = None
    refinements: Refinements | None = None
    phase: str
    """reason, refine, full or critique."""
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def credits(self) -> list[Credit]:
        """Of all stages."""
        return [credit for stage in self.stages for credit in stage.credits]

    def trajectories(self) -> list[Trajectory]:
        """What was rolled out, to look at: the refined images where there are any, else the drafts."""
        rolled = self.refinements or self.drafts
        return rolled.trajectories() if rolled else []

    def likelihoods(self) -> dict[str, float]:
        """`entropy`: mean -log p of the sampled text tokens, an unbiased estimate of it; mean log p of the steps."""
        texts = [c.segment.log_probs for c in self.credits if isinstance(c.segment, TextSegment)]
        images = [c.segment.log_probs for c in self.credits if isinstance(c.segment, ImageSegment)]
        out = {"entropy": -float(torch.cat(texts).mean())} if texts else {}
        return {**out, "image/log_prob_mean": float(torch.cat(images).mean())} if images else out

    @property
    def all_flat(self) -> bool:
        """No group has any spread: nothing can be learned from this step."""
        return all(stage.num_flat_groups == stage.num_groups for stage in self.stages)


@dataclass(kw_only=True)
class Schedule:
    """Decides and collects. `synthetic` fills `synthetic_fraction` of the nodes where a world can draw them."""

    name: str
    collector: Collector
    credit: CreditSettings
    pool: NodePool
    rounds: int = 1
    reason_steps: int = 1
    """Of `tree` (and `cotrain`): steps of drafts before each step of critiques."""
    synthetic: SyntheticNodes | None = None
    synthetic_fraction: float = 0.0
    apart: float = 0.0
    ramp: float = 0.0
    """Of `progressive`: shares of the run, as `joint_share` takes them."""

    def collect(self, step: int, prompts: Sequence[Prompt], *, seed: int, progress: float) -> Collected:
        """Rollouts and credits of one step. `step` counts updates from 0."""
        if self.name == "full":
            return self._full(prompts, seed, progress)
        name, second = self._now(seed, progress), step % (self.reason_steps + 1) == self.reason_steps
        if name == "tree" and second:
            nodes = self._nodes(len(prompts), seed)
            if nodes:
                return self._refine(nodes, seed, progress)
        if name == "critique_only" or (name == "cotrain" and second):
            return self._critique(prompts, seed, progress)
        return self._reason(prompts, seed, progress)

    def _now(self, seed: int, progress: float) -> str:
        """What `progressive` is at this step, in every process alike; the others are what they are."""
        if self.name != "progressive":
            return self.name
        joint = np.random.default_rng((seed, 1)).random() < joint_share(progress, self.apart, self.ramp)
        return "tree" if joint else "cotrain"

    def _reason(self, prompts: Sequence[Prompt], seed: int, progress: float) -> Collected:
        drafts = self.collector.drafts(prompts, seed=seed, progress=progress)
        self.pool.add(drafts.node_groups())
        stage = credit_drafts(drafts, self.credit)
        return _collected("reason", [stage], drafts=drafts)

    def _refine(self, nodes: Sequence[Node], seed: int, progress: float) -> Collected:
        refinements = self.collector.refinements(nodes, seed=seed, progress=progress)
        self.pool.add(refinements.node_groups())
        stage = credit_refinements(refinements, self.credit)
        return _collected("refine", [stage], refinements=refinements)

    def _full(self, prompts: Sequence[Prompt], seed: int, progress: float) -> Collected:
        """Trajectories side by side: the peers of a round are the trajectories of the same prompt."""
        drafts = self.collector.drafts(prompts, seed=seed, progress=progress)
        stages = [credit_drafts(drafts, self.credit)]
        group = self.collector.num_generations
        alive: list[tuple[Node, int]] = [
            (Node(prompt=p, image=r.image.image, score=r.verdict.total, verdict=r.verdict), i // group)
            for i, (p, r) in enumerate(zip(drafts.prompts, drafts.rounds, strict=True))
            if r.verdict is not None and r.verdict.total is not None
        ]
        refinements = None
        for number in range(self.rounds):
            if not alive:
                break
            refinements = self.collector.chain(
                [node for node, _ in alive], [g for _, g in alive], seed=round_seed(seed, number + 1), progress=progress
            )
            stages.append(credit_refinements(refinements, self.credit))
            alive = [
                (Node(prompt=n.prompt, image=i.image, score=v.total, verdict=v, depth=n.depth + 1), g)
                for n, i, v, g in zip(
                    refinements.nodes, refinements.images, refinements.verdicts, refinements.groups, strict=True
                )
                if i is not None and v is not None and v.total is not None
            ]
        return _collected("full", stages, drafts=drafts, refinements=refinements)

    def _critique(self, prompts: Sequence[Prompt], seed: int, progress: float) -> Collected:
        """Fresh drafts, not trained on, one of each group is critiqued by G peers."""
        drafts = self.collector.drafts(prompts, seed=seed, progress=progress)
        self.pool.groups.clear()
        self.pool.add(drafts.node_groups())
        rng = self._rng(seed)
        nodes = self.pool.choose(len(prompts), rng) or [
            group.nodes[int(rng.integers(len(group.nodes)))] for group in self.pool.groups
        ]
        count, first = self.collector.num_generations, self.collector.first_row
        with self.collector.watch.stage("critique"):
            critiques = make_critiques(
                self.collector.policy,
                [n.image for n in nodes],
                [n.prompt for n in nodes],
                self.collector.settings,
                seed,
                group=count,
                rows=range(first, first + len(nodes) * count),
            )
        rows = [n for n in nodes for _ in range(count)]
        groups = [i // count for i in range(len(rows))]
        stage = credit_critiques(rows, critiques, groups, self.credit)
        collected = _collected("critique", [stage], drafts=drafts)
        collected.metrics |= draft_score(drafts)
        return collected

    def _nodes(self, count: int, seed: int) -> list[Node]:
        rng = self._rng(seed)
        num_synthetic = round(count * self.synthetic_fraction) if self.synthetic else 0
        nodes = self.pool.choose(count - num_synthetic, rng)
        if self.synthetic and num_synthetic:
            nodes += self.synthetic(num_synthetic, int(rng.integers(2**31)) if self.collector.first_group else seed)
        return nodes

    def _rng(self, seed: int) -> np.random.Generator:
        """Of the choice of nodes: every process has a pool of its own and chooses by itself."""
        first = self.collector.first_group
        return np.random.default_rng((seed, first) if first else seed)


def _collected(
    phase: str, stages: list[StageCredit], *, drafts: Drafts | None = None, refinements: Refinements | None = None
) -> Collected:
    metrics: dict[str, float] = {}
    for stage in stages:
        metrics |= stage.metrics  # later rounds speak for the step where names meet
    return Collected(phase=phase, stages=stages, drafts=drafts, refinements=refinements, metrics=metrics)
