"""What a turn rolls out: the schedules of Tree-RL and its baselines, as tables of phases.

tree: reason phases (one, or `reason_steps`) and refine phases (one, or `reflect_steps`) in turn. full: whole
trajectories, credited round by round. episode: peers go on from one draft for several rounds, and one advantage reaches
all that a trajectory holds. draft_only: reason phases alone. critique_only: critiques of drafts, judged by whether
their decision is right. cotrain: reason and critique phases in turn. progressive: begins as cotrain and becomes tree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import floor
from types import MappingProxyType

import numpy as np
import torch

from r3_rl import ranks
from r3_rl.balance.progressive import Progressive
from r3_rl.modalities import DrawnSegment, TextSegment
from r3_rl.nodes import Node, trajectory
from r3_rl.observe.numbers import Numbers, combine, means
from r3_rl.recipe.branching import PHASES, BranchSection
from r3_rl.rollout.engine import Engine
from r3_rl.rollout.pool import NodePool
from r3_rl.rollout.rows import round_seed
from r3_rl.stages import ANSWER
from r3_rl.training.credit import Credit, CreditSettings, StageCredit
from r3_rl.training.earned import (
    Rewards,
    credit_answers,
    credit_critiques,
    credit_drafts,
    credit_refinements,
    credit_trajectories,
    scores,
    totals,
    whole_trajectories,
)
from r3_rl.types import Prompt, Trajectory

SyntheticNodes = Callable[[int, int], list[Node]]
"""(count, seed) -> scored images that no policy drew."""
AskedNodes = Callable[[int, int], list[Node]]
"""(count, seed) -> given images whose prompts are questions, with what is right in their column `answer`."""
AboutNodes = Callable[[Sequence[Node], int], list[Node]]
"""(drawn images, seed) -> at most as many of the same kind, about these images."""


@dataclass(kw_only=True, eq=False)
class Collected:
    """A turn's rollouts with their credits."""

    phase: str
    """reason, refine, full, episode, critique or answer."""
    leaves: list[Node]
    """Where each row ends: an image, a critique that ended the loop, or an answer."""
    stages: list[StageCredit]
    metrics: Numbers

    @cached_property
    def credits(self) -> list[Credit]:
        """Of all stages."""
        return [credit for stage in self.stages for credit in stage.credits]

    def trajectories(self) -> list[Trajectory]:
        """What was rolled out, to look at."""
        return [trajectory(leaf) for leaf in self.leaves]


@dataclass(kw_only=True)
class Schedule:
    """Decides which phase a turn is, runs it and credits it."""

    name: str
    engine: Engine
    credit: CreditSettings
    pool: NodePool
    branch: BranchSection = field(default_factory=BranchSection)
    """Children of every node."""
    rewards: Rewards = totals
    """How verdicts of drafts become rewards; gains are always differences of totals."""
    rounds: int
    reason_steps: int
    """First phases before the second ones."""
    reflect_steps: int
    """Second phases after them."""
    nodes_per_prompt: int
    """Images or questions of a turn of critiques or answers, for each prompt of a turn."""
    synthetic: SyntheticNodes | None = None
    synthetic_fraction: float
    """Share of the images that a world draws, where it can."""
    questions: AskedNodes | None
    answer_share: float
    """Share of the turns that train answers."""
    about: AboutNodes | None = None
    own_share: float
    """Share of the questions that are about the policy's own images, as far as the pool has any."""
    progressive: Progressive
    """Of `progressive`: when it joins drawing and understanding."""

    def collect(self, step: int, prompts: Sequence[Prompt], *, seed: int, progress: float) -> Collected:
        """Rollouts and credits of one turn. `step` counts turns from 0."""
        answered = floor(step * self.answer_share)
        if floor((step + 1) * self.answer_share) > answered:
            return self._answer(len(prompts) * self.nodes_per_prompt, seed)
        step -= answered  # the schedule's own turns follow one another as without answers
        phase, first, b = self._phase(step, seed, progress), self.engine.first_group, self.branch
        # every process has a pool of its own and chooses by itself
        rng = np.random.default_rng((seed, first) if first else seed)
        if phase == "full":
            return self._full(prompts, seed, progress)
        if phase == "episode":
            return self._episode(prompts, seed, progress)
        num_nodes, per_group = len(prompts) * self.nodes_per_prompt, self.nodes_per_prompt
        images = self._images(num_nodes, seed, rng) if phase == "refine" else []
        if images:
            roots = self.engine.roots(images, num_rows=b.critique * b.refinement, per_group=per_group)
            ends = self._branched(roots, seed, progress)
            self.pool.add(ends)
            return _collected("refine", ends, [credit_refinements(ends, self.credit)])
        drafts = self.engine.drafts(prompts, seed=seed, plans=b.plan, drafts=b.draft, progress=progress)
        if phase == "critique":
            return self._critique(drafts, num_nodes, seed, rng)
        self.pool.add(drafts)
        return _collected("reason", drafts, [credit_drafts(drafts, self.credit, self.rewards)])

    def _phase(self, step: int, seed: int, progress: float) -> str:
        """The phase of a turn, in every process alike."""
        name = self.name
        if name == "progressive":
            joint = np.random.default_rng((seed, 1)).random() < self.progressive.share(progress)
            name = "tree" if joint else "cotrain"
        phases = PHASES[name]
        return phases[-1] if step % (self.reason_steps + self.reflect_steps) >= self.reason_steps else phases[0]

    def _images(self, count: int, seed: int, rng: np.random.Generator) -> list[Node]:
        """What critiques are written about: nodes of the pool, and images that a world draws."""
        num_synthetic = round(count * self.synthetic_fraction) if self.synthetic else 0
        images = self.pool.choose(count - num_synthetic, rng)
        if self.synthetic and num_synthetic:
            images += self.synthetic(num_synthetic, int(rng.integers(2**31)) if self.engine.first_group else seed)
        return images

    def _branched(self, ends: Sequence[Node], seed: int, progress: float) -> list[Node]:
        critiques, refinements = self.branch.critique, self.branch.refinement
        return self.engine.round(ends, seed=seed, critiques=critiques, refinements=refinements, progress=progress)

    def _full(self, prompts: Sequence[Prompt], seed: int, progress: float) -> Collected:
        """Every image of every round branches; each round is credited by itself."""
        b = self.branch
        below = (b.critique * b.refinement) ** self.rounds
        ends = self.engine.drafts(prompts, seed=seed, plans=b.plan, drafts=b.draft, rollouts=below, progress=progress)
        stages = [credit_drafts(ends, self.credit, self.rewards)]
        for number in range(1, self.rounds + 1):
            before, ends = set(ends), self._branched(ends, round_seed(seed, number), progress)
            if grown := [end for end in ends if end not in before]:
                stages.append(credit_refinements(grown, self.credit))
        return _collected("full", ends, stages, items=whole_trajectories(ends))

    def _episode(self, prompts: Sequence[Prompt], seed: int, progress: float) -> Collected:
        """One draft a prompt, not trained on, branches; what is drawn from it goes on alone."""
        drafts = [draft for draft in self.engine.drafts(prompts, seed=seed) if draft.score is not None]
        roots = self.engine.roots(
            [draft.given() for draft in drafts], num_rows=self.branch.critique * self.branch.refinement
        )
        ends = self._branched(roots, round_seed(seed, 1), progress)
        for number in range(2, self.rounds + 1):
            ends = self.engine.round(ends, seed=round_seed(seed, number), progress=progress)
        items = {"refine/draft_score": scores(drafts), **whole_trajectories(ends)}
        return _collected("episode", ends, [credit_trajectories(ends, self.credit)], items=items)

    def _answer(self, count: int, seed: int) -> Collected:
        """Questions about given images, those that one process alone would ask, and about images of the pool."""
        assert self.questions is not None
        first = self.engine.first_group * self.nodes_per_prompt
        asked = self.questions(count * ranks.count(), seed)[first : first + count]
        own = self._about_own(round(count * self.own_share), seed)
        asked[: len(own)] = own
        roots = self.engine.roots(asked, num_rows=self.branch.answer, per_group=self.nodes_per_prompt)
        answers = self.engine.write(ANSWER, roots, self.engine.settings.critique, seed=seed, each=self.branch.answer)
        return _collected("answer", answers, [credit_answers(answers, self.credit)])

    def _about_own(self, count: int, seed: int) -> list[Node]:
        """At most so many questions about images of the pool."""
        images = [image for group in self.pool.groups for image in group]
        if self.about is None or not count or not images:
            return []
        rng = np.random.default_rng((seed, self.engine.first_group, 2))
        chosen = rng.permutation(len(images))[:count]
        return self.about([images[i] for i in chosen], seed)

    def _critique(self, drafts: list[Node], count: int, seed: int, rng: np.random.Generator) -> Collected:
        """G peers critique one image of each group of fresh drafts, which are not trained on, or one of a world's."""
        self.pool.groups.clear()
        self.pool.add(drafts)
        images = self._images(count, seed, rng)
        images = images or [group[int(rng.integers(len(group)))] for group in self.pool.groups]
        critiques = self.engine.critiques(images, seed=seed, each=self.branch.critique, per_group=self.nodes_per_prompt)
        return _collected(
            "critique",
            critiques,
            [credit_critiques(critiques, self.credit)],
            items={"refine/draft_score": scores(drafts)},
        )


def _collected(
    phase: str,
    leaves: list[Node],
    stages: list[StageCredit],
    *,
    items: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> Collected:
    """Stages joined as the table of metrics says. `items`: what is measured over the whole step instead."""
    # texts that earned nothing too: all do where entropy is gone
    made = dict.fromkeys(node for leaf in leaves for node in leaf.way)
    texts = [node.sample.log_probs for node in made if isinstance(node.sample, TextSegment)]
    images = [c.segment.log_probs for stage in stages for c in stage.credits if isinstance(c.segment, DrawnSegment)]
    # mean -log p of the sampled tokens is an unbiased estimate of their entropy
    log_probs = {"entropy": -torch.cat(texts)} if texts else {}
    log_probs |= {"image/log_prob_mean": torch.cat(images)} if images else {}
    metrics = combine([stage.metrics for stage in stages], over="batches") | means({**log_probs, **items})
    return Collected(phase=phase, leaves=leaves, stages=stages, metrics=metrics)
