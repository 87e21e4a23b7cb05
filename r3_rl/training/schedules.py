"""What a training step collects: the schedules of Tree-RL and its baselines.

tree: reason steps (one, or `reason_steps`) and a reflect-refine step in turn. full: whole trajectories. draft_only:
reason steps only.
critique_only: critiques of drafts, judged by whether their decision is right. cotrain: the last two in turn.
progressive: begins as cotrain and becomes tree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import torch

from r3_rl.balance.progressive import joint_share
from r3_rl.observe.metrics import combine
from r3_rl.rollout.collector import Collector, Drafts, Refinements
from r3_rl.rollout.episode import make_critiques, round_seed
from r3_rl.rollout.tree import Node, NodePool
from r3_rl.training.credit import (
    Credit,
    CreditSettings,
    Means,
    StageCredit,
    credit_critiques,
    credit_drafts,
    credit_refinements,
    draft_scores,
    means,
    whole_trajectories,
)
from r3_rl.types import Critique, ImageSegment, Prompt, Round, TextSegment, Trajectory

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
    sizes: dict[str, int] = field(default_factory=dict)
    """Items that each metric is a mean over, where it is one."""
    walked: list[Trajectory] = field(default_factory=list)
    """Of schedule `full`: every draft with all of its rounds."""

    @property
    def credits(self) -> list[Credit]:
        """Of all stages."""
        return [credit for stage in self.stages for credit in stage.credits]

    def trajectories(self) -> list[Trajectory]:
        """What was rolled out, to look at: whole trajectories, else refined images, else drafts."""
        rolled = self.refinements or self.drafts
        return self.walked or (rolled.trajectories() if rolled else [])

    def likelihoods(self) -> Means:
        """`entropy`: mean -log p of the sampled text tokens, an unbiased estimate of it; mean log p of the steps."""
        texts = [c.segment.log_probs for c in self.credits if isinstance(c.segment, TextSegment)]
        images = [c.segment.log_probs for c in self.credits if isinstance(c.segment, ImageSegment)]
        found = {"entropy": -torch.cat(texts)} if texts else {}
        return means(found | ({"image/log_prob_mean": torch.cat(images)} if images else {}))

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
        history = [[draft] for draft in drafts.rounds]
        last: list[Critique | None] = [None] * len(history)
        for number in range(self.rounds):
            # whoever stopped, drew nothing or has no score goes no further
            alive = [i for i, rounds in enumerate(history) if len(rounds) == number + 1 and _scored(rounds[-1])]
            if not alive:
                break
            refinements = self.collector.chain(
                [_node(drafts.prompts[i], history[i][-1], depth=number) for i in alive],
                [i // group for i in alive],
                seed=round_seed(seed, number + 1),
                progress=progress,
            )
            stages.append(credit_refinements(refinements, self.credit))
            rows = zip(alive, refinements.critiques, refinements.images, refinements.verdicts, strict=True)
            for i, critique, image, verdict in rows:
                if image is None:
                    last[i] = critique
                else:
                    history[i].append(Round(image=image, critique=critique, verdict=verdict))
        walked = [
            Trajectory(prompt=prompt, rounds=tuple(rounds), last_critique=critique)
            for prompt, rounds, critique in zip(drafts.prompts, history, last, strict=True)
        ]
        collected = _collected("full", stages, items=whole_trajectories(walked), drafts=drafts)
        collected.walked = walked
        return collected

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
        return _collected("critique", [stage], items=draft_scores(drafts), drafts=drafts)

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


def _scored(this: Round) -> bool:
    return this.verdict is not None and this.verdict.total is not None


def _node(prompt: Prompt, this: Round, *, depth: int) -> Node:
    assert this.verdict is not None and this.verdict.total is not None
    return Node(prompt=prompt, image=this.image.image, score=this.verdict.total, verdict=this.verdict, depth=depth)


def _collected(
    phase: str,
    stages: list[StageCredit],
    *,
    items: Mapping[str, torch.Tensor] = MappingProxyType({}),
    drafts: Drafts | None = None,
    refinements: Refinements | None = None,
) -> Collected:
    """Stages joined as the table of metrics says. `items`: what is measured over the whole step instead."""
    names = {name for stage in stages for name in stage.metrics}
    joined = Means(
        values=combine([stage.metrics for stage in stages], [stage.sizes for stage in stages]),
        sizes={n: size for n in names if (size := sum(stage.sizes.get(n, 0) for stage in stages))},
    ) | means(items)
    return Collected(
        phase=phase,
        stages=stages,
        drafts=drafts,
        refinements=refinements,
        metrics=joined.values,
        sizes=joined.sizes,
    )
