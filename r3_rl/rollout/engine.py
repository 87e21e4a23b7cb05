"""The one place that runs stages: the policy makes children below each parent, and scorers see images as they come.

Training, evaluation, the self-check, rehearsals and the refiner all go through `Engine`. A row's seeds follow from the
node's place in its turn: a batch gives what its rows would give alone, a stopped row changes nothing for the others,
and several processes draw what one would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TypeVar

from r3_rl.nodes import Node, image_roots, numbered, prompt_roots, trajectory
from r3_rl.policy.base import Drawing, Sampler
from r3_rl.rollout.rows import Parts, round_seed, row_seeds
from r3_rl.scoring.batch import ScoreBatch, to_uint8
from r3_rl.stages import CRITIQUE, DRAFT, PLAN, REFINEMENT
from r3_rl.stages.base import DrawingStage, Stage, WritingStage
from r3_rl.stages.settings import DrawingPlan, LoopSettings
from r3_rl.types import Prompt, TextSegment, Trajectory, Verdict

Submit = Callable[[ScoreBatch], Future[list[Verdict]]]
"""The panel's `submit`."""
Watch = Callable[[str, int], AbstractContextManager[None]]
"""Stage and its rows side by side -> a block around the work: for clocks and memory."""
_T = TypeVar("_T")


def _unwatched(stage: str, rows: int) -> AbstractContextManager[None]:
    return nullcontext()


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
    watch: Watch = _unwatched
    batches: list[ScoreBatch] = field(default_factory=list)
    """What `submit` was asked since `take_batches`."""
    first_group: int = 0
    """Roots that the processes before this one have."""

    def __post_init__(self) -> None:
        self.settings = replace(self.settings, refines=self.policy.spec.refines)

    def write(self, stage: WritingStage, parents: Sequence[Node], *, seed: int, each: int = 1) -> list[Node]:
        """`each` texts below every parent."""
        children = [child for parent in parents for child in parent.children(stage.name, each)]
        contexts = {parent: stage.context(parent, self.settings) for parent in parents}
        with self.watch(stage.name, len(children)):
            texts = self.policy.write(
                [contexts[c.above] for c in children], stage.sampling(self.settings), _seeds(seed, stage, children)
            )
        read = [stage.read(text, self.settings) for text in texts]
        return [
            replace(child, sample=text, critique=found.critique, well_formed=found.well_formed)
            for child, text, found in zip(children, texts, read, strict=True)
        ]

    def draw(
        self,
        stage: DrawingStage,
        parents: Sequence[Node],
        *,
        seed: int,
        each: int = 1,
        progress: float | None = None,
    ) -> list[Node | None]:
        """`each` images below every parent that asks for one, with their verdicts.

        Args:
            stage: draft or refinement.
            parents: plans, prompts or critiques.
            seed: of the turn.
            each: images of a parent.
            progress: share of the run that is over, of a training step, whose steps are partly stochastic; None draws
                by the ODE alone.
        """
        children = [child for parent in parents for child in parent.children(stage.name, each)]
        roots = [child.root for child in children]
        drawings = self._drawings(stage, roots, seed, progress)
        seeds = _seeds(seed, stage, children)
        groups = numbered(roots)
        noise = _noise_seeds(stage.drawing(self.settings), seeds, groups)
        contexts = {parent: stage.context(parent, self.settings) for parent in parents if stage.asked(parent)}
        out: list[Node | None] = [None] * len(children)
        waiting: list[tuple[list[int], list[Node], Future[list[Verdict]]]] = []
        for part in self.parts.of(groups):
            asked = [i for i in part if children[i].above in contexts]
            if not asked:
                continue
            with self.watch(stage.name, len(asked)):
                images = self.policy.draw(
                    [contexts[children[i].above] for i in asked],
                    _at(asked, drawings),
                    _at(asked, seeds),
                    _at(asked, noise),
                )
            made = [replace(children[i], sample=image) for i, image in zip(asked, images, strict=True)]
            for i, node in zip(asked, made, strict=True):
                out[i] = node
            if self.submit is not None:
                batch = score_batch(stage, made)
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
        num_rows: int = 1,
        per_plan: int = 1,
        per_draft: int = 1,
        progress: float | None = None,
    ) -> list[Node]:
        """Drafts of every prompt, which has `num_rows` rollouts: `per_plan` drafts of each plan, or straight from the
        prompt without plans; `per_draft` rollouts go on from each draft."""
        above = prompt_roots(prompts, num_rows=num_rows, first_row=self.first_group * num_rows)
        each = num_rows // per_draft
        if self.settings.plan is not None:
            above, each = self.write(PLAN, above, seed=seed, each=each // per_plan), per_plan
        return _all(self.draw(DRAFT, above, seed=seed, each=each, progress=progress))

    def roots(self, images: Sequence[Node], *, num_rows: int = 1) -> list[Node]:
        """Given images from which `num_rows` rollouts each go on."""
        return image_roots(images, num_rows=num_rows, first_row=self.first_group * num_rows)

    def critiques(self, images: Sequence[Node], *, seed: int, num_rows: int = 1, per_critique: int = 1) -> list[Node]:
        """Critiques of given images, each a root of `num_rows` refinements, `per_critique` of them by each critique."""
        return self.write(CRITIQUE, self.roots(images, num_rows=num_rows), seed=seed, each=num_rows // per_critique)

    def refinements(self, critiques: Sequence[Node], *, seed: int, progress: float | None = None) -> list[Node | None]:
        """An image for every row of the critiques that ask for one; None for the rows of the others."""
        each = critiques[0].num_rows if critiques else 1
        return self.draw(REFINEMENT, critiques, seed=seed, each=each, progress=progress)

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
        going_on = [end for end in ends if CRITIQUE.asked(end)]
        if not going_on:
            return list(ends)
        said = self.write(CRITIQUE, going_on, seed=seed, each=critiques)
        drawn = self.draw(REFINEMENT, said, seed=seed, each=refinements, progress=progress)
        below: dict[Node, list[Node]] = {}
        for i, image in enumerate(drawn):
            critique = said[i // refinements]
            below.setdefault(critique.above, []).append(image or critique)
        return [node for end in ends for node in below.get(end, [end])]

    def loop(self, prompts: Sequence[Prompt], *, rounds: int, seed: int) -> list[Trajectory]:
        """Whole trajectories, one a prompt: a draft, then up to `rounds` rounds; who stops leaves the batch."""
        ends = self.drafts(prompts, seed=seed)
        for number in range(1, rounds + 1):
            ends = self.round(ends, seed=round_seed(seed, number))
        return [trajectory(end) for end in ends]

    def _drawings(self, stage: DrawingStage, roots: Sequence[Node], seed: int, progress: float | None) -> list[Drawing]:
        plan = stage.drawing(self.settings)
        if progress is None:
            return [plan.drawing] * len(roots)
        # by the root's place among those of all processes, whichever of them are drawn from now
        return plan.rows([root.id.row // root.num_rows for root in roots], seed=seed, progress=progress)

    def take_batches(self) -> list[ScoreBatch]:
        """What the scorers were asked since the last call."""
        taken, self.batches = self.batches, []
        return taken


def run_loop(
    policy: Sampler, prompts: Sequence[Prompt], settings: LoopSettings, *, rounds: int, seed: int
) -> list[Trajectory]:
    """Whole trajectories of a policy, one a prompt, without scorers and without stochastic steps (`Engine.loop`)."""
    return Engine(policy=policy, settings=settings).loop(prompts, rounds=rounds, seed=seed)


def _seeds(seed: int, stage: Stage, children: Sequence[Node]) -> list[int]:
    all_rows = row_seeds(seed, stage.number, max((c.id.row for c in children), default=-1) + 1)
    return [all_rows[c.id.row] for c in children]


def _noise_seeds(plan: DrawingPlan, seeds: Sequence[int], groups: Sequence[int]) -> list[int]:
    """Of the initial noise: each row's own, or that of the first of its peers."""
    if not plan.shared_noise:
        return list(seeds)
    first: dict[int, int] = {}
    return [first.setdefault(group, seed) for group, seed in zip(groups, seeds, strict=True)]


def _at(rows: Sequence[int], values: Sequence[_T]) -> list[_T]:
    return [values[row] for row in rows]


def _all(nodes: Sequence[Node | None]) -> list[Node]:
    found = [node for node in nodes if node is not None]
    assert len(found) == len(nodes), "a draft is always drawn"
    return found


def _ids_of(node: Node | None) -> tuple[int, ...]:
    """Of the text that an image was drawn after; none after a prompt."""
    return node.sample.token_ids if node is not None and isinstance(node.sample, TextSegment) else ()


def score_batch(stage: DrawingStage, images: Sequence[Node]) -> ScoreBatch:
    """What scorers are asked about images of a stage; peers, which they may compare, are those of a root."""
    shown = [stage.shown(node.parent) for node in images if node.parent is not None]
    refined_from = [s.before for s in shown if s.before is not None]
    texts = [s.text for s in shown]
    return ScoreBatch(
        prompts=[node.prompt for node in images],
        images=[to_uint8(node.image) for node in images],
        texts=texts,
        token_ids=[_ids_of(node.parent) for node in images],
        draft_images=[to_uint8(node.image) for node in refined_from] if refined_from else None,
        critiques=texts if refined_from else None,
        groups=[node.root.id.row for node in images],
    )
