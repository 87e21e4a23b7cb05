"""The rollouts of a rehearsed step: what a step writes, draws and scores, stage by stage, timed or weighed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

import torch

from r3_rl.evaluate.rehearsal import Spent
from r3_rl.observe.memory import weighed
from r3_rl.policy.base import Policy
from r3_rl.rollout.episode import Parts, make_critiques, make_drafts, row_seeds
from r3_rl.rollout.protocol import edit
from r3_rl.scoring.batch import ScoreBatch, to_uint8
from r3_rl.training.credit import Credit
from r3_rl.training.fast import fast_weights
from r3_rl.training.trainer import R3Trainer
from r3_rl.types import Critique, ImageSegment, Prompt, Round, Segment, TextPiece, TextSegment

Result = TypeVar("Result")
Stage = Literal["plan", "draft", "critique", "refinement"]


@dataclass(kw_only=True)
class Log:
    """Stages as they run."""

    device: torch.device
    rows: int = 0
    """Rollouts of the step."""
    stage: str = ""
    """What runs, or ran last."""
    beside: int = 0
    """Rollouts that it has side by side."""
    weigh: bool = True
    shares: Mapping[str, float] = field(default_factory=dict)
    """Stage -> the share of a run's rollouts that it takes side by side, where that is not all of them."""
    seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def begin(self, rows: int) -> None:
        """Before the rollouts of a step."""
        self.rows = rows
        self.seconds.clear()

    def run(self, stage: str, work: Callable[[], Result]) -> Result:
        """Runs a stage; keeps its seconds, and its memory where it is to be weighed."""
        result, self.seconds[stage] = self._measured(stage, work, self.rows)
        return result

    def run_part(self, stage: str, work: Callable[[], Result], rows: int) -> Result:
        """The same for some of the rollouts: the seconds add up."""
        result, seconds = self._measured(stage, work, rows)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        return result

    def spent(self, stage: str) -> Spent:
        """What a stage took."""
        peaks = tuple(sorted(self.peaks.get(stage, ())))
        return Spent(seconds=self.seconds.get(stage, 0.0), peaks=peaks, share=self.shares.get(stage, 1.0))

    def _measured(self, stage: str, work: Callable[[], Result], rows: int) -> tuple[Result, float]:
        self.stage, self.beside = stage, rows
        if not self.weigh:
            return self._timed(work)
        with weighed(self.device) as taken:
            spent = self._timed(work)
        self.peaks.setdefault(stage, []).append((rows, taken.peak_bytes))
        return spent

    def _timed(self, work: Callable[[], Result]) -> tuple[Result, float]:
        begin = time.perf_counter()
        result = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return result, time.perf_counter() - begin

    def fitting(self, rows: int, room: int) -> int:
        """At most so many rollouts, and no more than fit into the room by what was measured so far."""
        spent = [self.spent(stage) for stage in self.peaks]
        while rows > 2 and any(s.bytes_at(rows) > room for s in spent):
            rows -= 1
        return rows


@dataclass(frozen=True, kw_only=True)
class _Watched:
    """A policy whose calls are stages."""

    policy: Policy
    log: Log
    write_stage: Stage
    draw_stage: Stage

    def write(self, *args: Any) -> list[TextSegment]:
        return self.log.run(self.write_stage, lambda: self.policy.write(*args))

    def draw(self, *args: Any) -> list[ImageSegment]:
        return self.log.run_part(self.draw_stage, lambda: self.policy.draw(*args), len(args[0]))


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """What was written and drawn, by stage."""

    segments: dict[Stage, list[Segment]]

    def credits(self, stages: Sequence[Stage]) -> list[Credit]:
        """All of these stages' segments, with advantages of both signs."""
        return [
            Credit(segment=segment, advantage=1.0 if i % 2 else -1.0, stage=stage)
            for stage in stages
            for i, segment in enumerate(self.segments.get(stage, []))
        ]


def roll_out(
    trainer: R3Trainer, prompts: Sequence[Prompt], peers: int, names: Sequence[str], log: Log, parts: Parts
) -> Rollouts:
    """Drafts of every prompt; then critiques and refinements that branch from each prompt's first draft. Images are
    drawn in `parts`."""
    log.begin(len(prompts) * peers)
    loop, seed = trainer.loop, trainer.args.seed
    groups = [i // peers for i in range(log.rows)]
    watched = _Watched(policy=trainer.policy, log=log, write_stage="plan", draw_stage="draft")
    with torch.no_grad(), fast_weights(trainer.policy.module):
        drawings = loop.draft.rows(groups, seed=seed, progress=0.0)
        drafts = make_drafts(cast(Policy, watched), prompts, loop, drawings, seed, group=peers, parts=parts)
        _score_drafts(trainer, prompts, drafts, groups, log)
        segments: dict[Stage, list[Segment]] = {
            "plan": [r.plan for r in drafts if r.plan is not None],
            "draft": [r.image for r in drafts],
        }
        nodes = [r.image.image for r in drafts[::peers]]
        if "critique" in names:
            again = _Watched(policy=trainer.policy, log=log, write_stage="critique", draw_stage="refinement")
            critiques = make_critiques(cast(Policy, again), nodes, prompts, loop, seed, group=peers)
            segments["critique"] = [c.segment for c in critiques]
        if "refinement" in names:
            pieces = [edit(image) for image in nodes]
            contexts = [
                (pieces[group], TextPiece(text=critique.instruction or critique.segment.text))
                for group, critique in zip(groups, critiques, strict=True)
            ]
            drawings = loop.refine.rows(groups, seed=seed, progress=0.0)
            seeds = row_seeds(seed, 3, len(contexts))
            refined = [
                image
                for rows in parts.of(groups)
                for image in again.draw(*([values[i] for i in rows] for values in (contexts, drawings, seeds)))
            ]
            segments["refinement"] = list(refined)
            _score_refinements(trainer, prompts, nodes, critiques, refined, groups, log)
    return Rollouts(segments=segments)


def _score_drafts(
    trainer: R3Trainer, prompts: Sequence[Prompt], drafts: Sequence[Round], groups: Sequence[int], log: Log
) -> None:
    batch = ScoreBatch(
        prompts=[prompts[g] for g in groups],
        images=[to_uint8(r.image.image) for r in drafts],
        texts=[r.plan.text if r.plan else "" for r in drafts],
        groups=groups,
    )
    log.run("score drafts", lambda: trainer.panel.score(batch))


def _score_refinements(
    trainer: R3Trainer,
    prompts: Sequence[Prompt],
    nodes: Sequence[torch.Tensor],
    critiques: Sequence[Critique],
    refined: Sequence[ImageSegment],
    groups: Sequence[int],
    log: Log,
) -> None:
    texts = [critique.segment.text for critique in critiques]
    batch = ScoreBatch(
        prompts=[prompts[g] for g in groups],
        images=[to_uint8(segment.image) for segment in refined],
        texts=texts,
        draft_images=[to_uint8(nodes[g]) for g in groups],
        critiques=texts,
        groups=groups,
    )
    log.run("score refinements", lambda: trainer.panel.score(batch))
