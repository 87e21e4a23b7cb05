"""The one place that runs stages: the policy makes children below each parent, and scorers see images as they come.

Training, evaluation, the self-check, rehearsals and the refiner all go through `Engine`. A row's seeds follow from the
node's place in its turn: a batch gives what its rows would give alone, a stopped row changes nothing for the others,
and several processes draw what one would.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace

from r3_rl.nodes import Node, image_roots, numbered, prompt_roots, trajectory
from r3_rl.policy.base import Sampler, Sampling
from r3_rl.rollout.rows import Parts, round_seed, row_seeds, score_batch
from r3_rl.scoring.batch import ScoreBatch
from r3_rl.stages import CRITIQUE, DRAFT, PLAN, REFINEMENT, Stage, WritingStage
from r3_rl.stages.settings import DrawingPlan, LoopSettings
from r3_rl.types import Prompt, Trajectory, Verdict

Submit = Callable[[ScoreBatch], Future[list[Verdict]]]
"""The panel's `submit`."""
Watch = Callable[[str, int], AbstractContextManager[None]]
"""Stage and its rows side by side -> a block around the work: for clocks and memory."""

_COUNTS_AS = {"plan": "draft", "refinement": "refine"}
"""Stage -> the name that its time has, if that is not its own: a plan is part of its draft."""


@dataclass(kw_only=True)
class Stopwatch:
    """Adds up the seconds of an engine's stages, as `time/*_s` names them.

    >>> watch = Stopwatch()
    >>> with watch("plan", 8), watch("score", 8):
    ...     pass
    >>> sorted(watch.seconds)
    ['draft', 'score']
    """

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str, rows: int) -> Iterator[None]:
        """Adds the time of the block to a stage; `rows` is for watches that weigh."""
        name, begin = _COUNTS_AS.get(stage, stage), time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


@dataclass(kw_only=True)
class Engine:
    """Runs stages of one policy.

    Nodes come back in the order of their parents, siblings side by side; None stands where a parent asks for nothing.
    """

    policy: Sampler
    settings: LoopSettings
    submit: Submit | None = None
    """Asked about every image; None leaves images without verdict."""
    parts: Parts = field(default_factory=Parts)
    """The batches in which a stage's images are drawn: scorers work on one while the next is drawn."""
    watch: Watch = lambda stage, rows: nullcontext()
    batches: list[ScoreBatch] = field(default_factory=list)
    """What `submit` was asked, for whoever asks other scorers the same."""
    first_group: int = 0
    """Roots that the processes before this one have."""

    def __post_init__(self) -> None:
        self.settings = replace(self.settings, refines=self.policy.spec.refines)

    def write(
        self, stage: WritingStage, parents: Sequence[Node], sampling: Sampling, *, seed: int, each: int = 1
    ) -> list[Node]:
        """`each` texts below every parent that asks for one."""
        contexts = {p: context for p in parents if (context := stage.context(p, self.settings)) is not None}
        children = [child for parent in contexts for child in parent.children(stage.name, each)]
        if not children:
            return []
        seeds = _seeds(seed, stage, children)
        with self.watch(stage.name, len(children)):
            asked = replace(sampling, task=stage.name)
            texts = self.policy.write([contexts[child.above] for child in children], asked, seeds)
        return [stage.read(child, text, self.settings) for child, text in zip(children, texts, strict=True)]

    def draw(
        self,
        stage: Stage,
        parents: Sequence[Node],
        plan: DrawingPlan,
        *,
        seed: int,
        each: int = 1,
        progress: float | None = None,
    ) -> list[Node | None]:
        """`each` images below every parent that asks for one, with their verdicts.

        Args:
            stage: draft or refinement.
            parents: plans, prompts or critiques.
            plan: how they are drawn.
            seed: of the turn.
            each: images of a parent.
            progress: share of the run that is over, of a training step, whose steps are partly stochastic; None draws
                by the ODE alone.
        """
        contexts = {p: context for p in parents if (context := stage.context(p, self.settings)) is not None}
        children = [child for parent in parents for child in parent.children(stage.name, each)]
        roots = [child.root for child in children]
        groups, seeds, drawings = numbered(roots), _seeds(seed, stage, children), [plan.drawing] * len(children)
        if progress is not None:
            # by the root's place among those of all processes, whichever of them are drawn from now
            drawings = plan.rows([root.id.row // root.num_rows for root in roots], seed=seed, progress=progress)
        drawings = [replace(drawing, task=stage.name) for drawing in drawings]
        first: dict[int, int] = {}
        noise = [first.setdefault(g, s) for g, s in zip(groups, seeds, strict=True)] if plan.shared_noise else seeds
        out: list[Node | None] = [None] * len(children)
        waiting: list[tuple[list[int], list[Node], Future[list[Verdict]]]] = []
        for part in self.parts.of(groups):
            asked = [i for i in part if children[i].above in contexts]
            if not asked:
                continue
            with self.watch(stage.name, len(asked)):
                images = self.policy.draw(
                    [contexts[children[i].above] for i in asked],
                    [drawings[i] for i in asked],
                    [seeds[i] for i in asked],
                    [noise[i] for i in asked],
                )
            made = [replace(children[i], sample=image) for i, image in zip(asked, images, strict=True)]
            for i, node in zip(asked, made, strict=True):
                out[i] = node
            if self.submit is not None:
                batch = score_batch(made)
                self.batches.append(batch)
                waiting.append((asked, made, self.submit(batch)))
        with self.watch("score", len(children)) if waiting else nullcontext():
            for asked, made, answer in waiting:
                for i, node, verdict in zip(asked, made, answer.result(), strict=True):
                    out[i] = replace(node, verdict=verdict)
        return out

    def drafts(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        plans: int = 1,
        drafts: int = 1,
        rollouts: int = 1,
        progress: float | None = None,
    ) -> list[Node]:
        """Drafts of every prompt: `drafts` of each of its `plans`, or straight from the prompt if plans are off;
        `rollouts` go on from each draft."""
        num_rows = plans * drafts * rollouts
        above = prompt_roots(prompts, num_rows=num_rows, first_row=self.first_group * num_rows)
        if self.settings.plan is None:
            drafts *= plans
        else:
            above = self.write(PLAN, above, self.settings.plan, seed=seed, each=plans)
        drawn = self.draw(DRAFT, above, self.settings.draft, seed=seed, each=drafts, progress=progress)
        return [draft for draft in drawn if draft is not None]

    def roots(self, images: Sequence[Node], *, num_rows: int = 1, per_group: int = 1) -> list[Node]:
        """Given images from which `num_rows` rollouts each go on; at most `per_group` of them for each of the groups
        that a process has."""
        return image_roots(images, num_rows=num_rows, first_row=self.first_group * per_group * num_rows)

    def critiques(self, images: Sequence[Node], *, seed: int, each: int = 1, per_group: int = 1) -> list[Node]:
        """`each` critiques of every given image, for one refinement by each of them; `per_group` as in `roots`."""
        roots = self.roots(images, num_rows=each, per_group=per_group)
        return self.write(CRITIQUE, roots, self.settings.critique, seed=seed, each=each)

    def refinements(self, critiques: Sequence[Node], *, seed: int, progress: float | None = None) -> list[Node | None]:
        """An image for every row of the critiques that ask for one; None for the rows of the others."""
        each = critiques[0].num_rows if critiques else 1
        return self.draw(REFINEMENT, critiques, self.settings.refine, seed=seed, each=each, progress=progress)

    def round(
        self,
        ends: Sequence[Node],
        *,
        seed: int,
        critiques: int = 1,
        refinements: int = 1,
        progress: float | None = None,
    ) -> list[Node]:
        """Go on from every image in which rollouts end: critiques of it, and refinements by those that ask for one.

        Args:
            ends: where rollouts end: images, and critiques that ended the loop, which stay.
            seed: of the round.
            critiques: of each image.
            refinements: by each critique.
            progress: as in `draw`.

        Returns:
            Where they end now; a critique that ends the loop once for each refinement that it does without.
        """
        said = self.write(CRITIQUE, ends, self.settings.critique, seed=seed, each=critiques)
        return self._follow(ends, said, seed=seed, each=refinements, progress=progress)

    def _follow(
        self, ends: Sequence[Node], said: Sequence[Node], *, seed: int, each: int = 1, progress: float | None = None
    ) -> list[Node]:
        """The second half of a round: `each` refinements by every critique that asks for one."""
        drawn = self.draw(REFINEMENT, said, self.settings.refine, seed=seed, each=each, progress=progress)
        below: dict[Node, list[Node]] = {}
        for i, image in enumerate(drawn):
            critique = said[i // each]
            below.setdefault(critique.above, []).append(image or critique)
        return [node for end in ends for node in below.get(end, [end])]

    def walk(self, prompts: Sequence[Prompt], *, rounds: int, seed: int) -> Iterator[list[Trajectory]]:
        """How far each prompt has come, after every stage: the drafts, then for up to `rounds` rounds the critiques and
        the refinements; who stops leaves the batch. The last ones are whole."""
        ends = self.drafts(prompts, seed=seed)
        yield [trajectory(end) for end in ends]
        for number in range(1, rounds + 1):
            turn = round_seed(seed, number)
            said = self.write(CRITIQUE, ends, self.settings.critique, seed=turn)
            if not said:
                return
            below = {critique.above: critique for critique in said}
            yield [trajectory(below.get(end, end)) for end in ends]
            ends = self._follow(ends, said, seed=turn)
            yield [trajectory(end) for end in ends]

    def loop(self, prompts: Sequence[Prompt], *, rounds: int, seed: int) -> list[Trajectory]:
        """Whole trajectories, one a prompt: the last ones of `walk`."""
        (whole,) = deque(self.walk(prompts, rounds=rounds, seed=seed), maxlen=1)
        return whole


def run_loop(
    policy: Sampler, prompts: Sequence[Prompt], settings: LoopSettings, *, rounds: int, seed: int
) -> list[Trajectory]:
    """Whole trajectories of a policy, one a prompt, without scorers and without stochastic steps (`Engine.loop`)."""
    return Engine(policy=policy, settings=settings).loop(prompts, rounds=rounds, seed=seed)


def _seeds(seed: int, stage: Stage, children: Sequence[Node]) -> list[int]:
    all_rows = row_seeds(seed, stage.number, max((c.id.row for c in children), default=-1) + 1)
    return [all_rows[c.id.row] for c in children]
