"""From prompts to scored groups: what a training step learns from.

Shapes: P prompts (or nodes), G peers, R = P * G rollouts in order, peers side by side.

Scorers work while the policy draws: a step's rows are drawn in `parts`, and each part is submitted as soon as it is
there. The stage "score" is what is still waited for when the last part is drawn. `parts` decides which rows are drawn
in one batch; whether the scorers are quick or slow decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from r3_rl.policy.base import Policy
from r3_rl.rollout.episode import LoopSettings, Parts, make_critiques, make_drafts, make_refinements
from r3_rl.rollout.tree import Node, NodeGroup
from r3_rl.scoring.batch import ScoreBatch, to_uint8
from r3_rl.types import Critique, ImageSegment, Prompt, Round, Trajectory, Verdict, still

Submit = Callable[[ScoreBatch], Future[list[Verdict]]]
"""The panel's `submit`."""
Rewards = Callable[[Sequence[Verdict], Sequence[int]], list[float | None]]
"""The panel's `rewards`: verdicts and their groups -> one number each, None where it is missing."""


def totals(verdicts: Sequence[Verdict], groups: Sequence[int]) -> list[float | None]:
    """The verdicts' totals, whatever the groups."""
    return [verdict.total for verdict in verdicts]


@dataclass(kw_only=True)
class Stopwatch:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of the block to a stage."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


@dataclass(frozen=True, kw_only=True, eq=False)
class Drafts:
    """Scored drafts, [R] each."""

    prompts: tuple[Prompt, ...]
    rounds: tuple[Round, ...]
    rewards: tuple[float | None, ...]
    """What the algorithm compares: the scores' totals, or the normalised scores' sums."""
    groups: tuple[int, ...]
    """Peers have one number."""
    well_formed: tuple[bool, ...]
    """Of the plans; True where plans are off."""
    per_plan: int = 1
    """Neighbouring rows that were drawn from one plan."""

    def node_groups(self) -> list[NodeGroup]:
        """Groups for the pool; images without a score stay out."""
        return _node_groups(
            self.groups,
            [
                None
                if r.verdict is None or r.verdict.total is None
                else Node(prompt=p, image=r.image.image, score=r.verdict.total, verdict=r.verdict)
                for p, r in zip(self.prompts, self.rounds, strict=True)
            ],
        )

    def trajectories(self) -> list[Trajectory]:
        """Each draft as a trajectory that goes no further."""
        return [Trajectory(prompt=p, rounds=(r,)) for p, r in zip(self.prompts, self.rounds, strict=True)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Refinements:
    """Scored critiques and refinements of nodes, [R] each."""

    nodes: tuple[Node, ...]
    critiques: tuple[Critique, ...]
    images: tuple[ImageSegment | None, ...]
    """None where the critique stopped or was malformed."""
    verdicts: tuple[Verdict | None, ...]
    """Of the refined images."""
    groups: tuple[int, ...]
    per_critique: int = 1
    """Neighbouring rows that were drawn by one critique."""

    def node_groups(self) -> list[NodeGroup]:
        """Refined images as nodes one deeper."""
        found = []
        for node, image, verdict in zip(self.nodes, self.images, self.verdicts, strict=True):
            scored = image is not None and verdict is not None and verdict.total is not None
            found.append(
                Node(prompt=node.prompt, image=image.image, score=verdict.total, verdict=verdict, depth=node.depth + 1)
                if scored and image is not None and verdict is not None and verdict.total is not None
                else None
            )
        return _node_groups(self.groups, found)

    def trajectories(self) -> list[Trajectory]:
        """Each node with what was said of it and, where it was edited, what became of it."""
        out = []
        for node, critique, image, verdict in zip(self.nodes, self.critiques, self.images, self.verdicts, strict=True):
            rounds = (Round(image=still(node.image), verdict=node.verdict),)
            if image is None:
                out.append(Trajectory(prompt=node.prompt, rounds=rounds, last_critique=critique))
            else:
                drawn = Round(image=image, critique=critique, verdict=verdict)
                out.append(Trajectory(prompt=node.prompt, rounds=(*rounds, drawn)))
        return out


def _node_groups(groups: Sequence[int], nodes: Sequence[Node | None]) -> list[NodeGroup]:
    by_group: dict[int, list[Node]] = {}
    for group, node in zip(groups, nodes, strict=True):
        if node is not None:
            by_group.setdefault(group, []).append(node)
    return [NodeGroup(nodes=tuple(members)) for members in by_group.values()]


class _Asked:
    """Rows that scorers have been asked about."""

    def __init__(self, submit: Submit, batches: list[ScoreBatch]) -> None:
        self._submit, self._batches = submit, batches
        self._waiting: list[tuple[Sequence[int], Future[list[Verdict]]]] = []

    def submit(self, rows: Sequence[int], batch: ScoreBatch) -> None:
        self._batches.append(batch)
        self._waiting.append((rows, self._submit(batch)))

    def wait(self) -> dict[int, Verdict]:
        """The verdicts by row; raises what a scorer's broken contract raised."""
        found = ((rows, answer.result()) for rows, answer in self._waiting)
        return {row: verdict for rows, verdicts in found for row, verdict in zip(rows, verdicts, strict=True)}


@dataclass(kw_only=True)
class Collector:
    """Rollouts of a policy, scored by a panel."""

    policy: Policy
    submit: Submit
    settings: LoopSettings
    num_generations: int
    images_per_plan: int = 1
    """Drafts of a plan, a divisor of `num_generations`."""
    images_per_critique: int = 1
    """Refinements by a critique, a divisor of `num_generations`."""
    parts: Parts = field(default_factory=Parts)
    """The batches in which a step's images are drawn."""
    rewards: Rewards = totals
    """How verdicts of drafts become rewards; gains are always differences of totals."""
    watch: Stopwatch = field(default_factory=Stopwatch)
    batches: list[ScoreBatch] = field(default_factory=list)
    """What the scorers were asked; whoever reads it clears it."""
    first_group: int = 0
    """Groups that the processes before this one have. What is random about a row follows from its place among all
    rows: processes never draw the same noise, and several draw what one would."""

    @property
    def first_row(self) -> int:
        """Rows that the processes before this one have."""
        return self.first_group * self.num_generations

    def drafts(self, prompts: Sequence[Prompt], *, seed: int, progress: float = 0.0) -> Drafts:
        """G drafts a prompt, scored."""
        g = self.num_generations
        groups = tuple(i // g for i in range(g * len(prompts)))
        drawings = self.settings.draft.rows(groups, seed=seed, progress=progress, first_group=self.first_group)
        rows = [p for p in prompts for _ in range(g)]
        asked = _Asked(self.submit, self.batches)

        def drawn(part: Sequence[int], rounds: Sequence[Round]) -> None:
            asked.submit(
                part,
                ScoreBatch(
                    prompts=[rows[i] for i in part],
                    images=[to_uint8(r.image.image) for r in rounds],
                    texts=[r.plan.text if r.plan else "" for r in rounds],
                    groups=[groups[i] for i in part],
                ),
            )

        with self.watch.stage("draft"):
            rounds = make_drafts(
                self.policy,
                prompts,
                self.settings,
                drawings,
                seed,
                group=g,
                per_plan=self.images_per_plan,
                first_row=self.first_row,
                parts=self.parts,
                drawn=drawn,
            )
        with self.watch.stage("score"):
            answers = asked.wait()
        verdicts = [answers[i] for i in range(len(rows))]
        protocol = self.settings.protocol
        return Drafts(
            prompts=tuple(rows),
            rounds=tuple(Round(image=r.image, plan=r.plan, verdict=v) for r, v in zip(rounds, verdicts, strict=True)),
            rewards=tuple(self.rewards(verdicts, groups)),
            groups=groups,
            well_formed=tuple(r.plan is None or protocol.plan_well_formed(r.plan) for r in rounds),
            per_plan=self.images_per_plan if self.settings.plan is not None else 1,
        )

    def refinements(self, nodes: Sequence[Node], *, seed: int, progress: float = 0.0) -> Refinements:
        """G refinements a node, scored: `images_per_critique` of each critique that asks for one."""
        groups = [i for i in range(len(nodes)) for _ in range(self.num_generations)]
        return self._branch(nodes, groups, self.num_generations, self.images_per_critique, seed, progress)

    def chain(self, nodes: Sequence[Node], groups: Sequence[int], *, seed: int, progress: float = 0.0) -> Refinements:
        """One critique and refinement a node; `groups` says whose peers the nodes are (whole trajectories)."""
        return self._branch(nodes, groups, 1, 1, seed, progress)

    def _branch(
        self, nodes: Sequence[Node], groups: Sequence[int], g: int, m: int, seed: int, progress: float
    ) -> Refinements:
        """g rows a node, m of them by one critique."""
        places = range(self.first_row, self.first_row + len(groups))
        with self.watch.stage("critique"):
            written = make_critiques(
                self.policy,
                [n.image for n in nodes],
                [n.prompt for n in nodes],
                self.settings,
                seed,
                group=g // m,
                rows=places[::m],
            )
        critiques = [critique for critique in written for _ in range(m)]
        rows = [n for n in nodes for _ in range(g)]
        drawings = self.settings.refine.rows(groups, seed=seed, progress=progress, first_group=self.first_group)
        asked = _Asked(self.submit, self.batches)

        def drawn(part: Sequence[int], images: Sequence[ImageSegment]) -> None:
            texts = [critiques[i].segment.text for i in part]
            asked.submit(
                part,
                ScoreBatch(
                    prompts=[rows[i].prompt for i in part],
                    images=[to_uint8(image.image) for image in images],
                    texts=texts,
                    draft_images=[to_uint8(rows[i].image) for i in part],
                    critiques=texts,
                    groups=[groups[i] for i in part],
                ),
            )

        with self.watch.stage("refine"):
            images = make_refinements(
                self.policy,
                critiques,
                [n.image for n in rows],
                [n.prompt for n in rows],
                self.settings,
                drawings,
                seed,
                groups=groups,
                rows=places,
                parts=self.parts,
                drawn=drawn,
            )
        with self.watch.stage("score"):
            answers = asked.wait()
        return Refinements(
            nodes=tuple(rows),
            critiques=tuple(critiques),
            images=tuple(images),
            verdicts=tuple(answers.get(i) for i in range(len(rows))),
            groups=tuple(groups),
            per_critique=m,
        )
