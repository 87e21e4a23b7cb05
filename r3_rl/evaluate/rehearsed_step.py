"""The rollouts of a rehearsed step: what a step writes, draws and scores, stage by stage, timed or weighed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch

from r3_rl.evaluate.rehearsal import Spent
from r3_rl.nodes import always_edits, given_image
from r3_rl.observe.memory import weighed
from r3_rl.policy.adapters import adapter_merged
from r3_rl.rollout.engine import Engine, score_batch
from r3_rl.rollout.rows import Parts
from r3_rl.training.credit import Credit
from r3_rl.training.trainer import R3Trainer
from r3_rl.types import Prompt, Segment

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
        """Runs a stage of all rollouts; keeps its seconds, and its memory where it is to be weighed."""
        with self.watch(stage, self.rows):
            return work()

    @contextmanager
    def watch(self, stage: str, rows: int) -> Iterator[None]:
        """Around a stage of some of the rollouts, as an engine asks for it: the seconds of a stage add up."""
        self.stage, self.beside = stage, rows
        with weighed(self.device) if self.weigh else nullcontext() as taken:
            begin = time.perf_counter()
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begin
        if taken is not None:
            self.peaks.setdefault(stage, []).append((rows, taken.peak_bytes))

    def spent(self, stage: str) -> Spent:
        """What a stage took."""
        peaks = tuple(sorted(self.peaks.get(stage, ())))
        return Spent(seconds=self.seconds.get(stage, 0.0), peaks=peaks, share=self.shares.get(stage, 1.0))

    def fitting(self, rows: int, room: int) -> int:
        """At most so many rollouts, and no more than fit into the room by what was measured so far."""
        spent = [self.spent(stage) for stage in self.peaks]
        while rows > 2 and any(s.bytes_at(rows) > room for s in spent):
            rows -= 1
        return rows


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
    drawn in `parts`, and scored when all are there."""
    log.begin(len(prompts) * peers)
    seed = trainer.args.seed
    engine = Engine(policy=trainer.policy, settings=trainer.loop, parts=parts, watch=log.watch)
    with torch.no_grad(), adapter_merged(trainer.policy.module):
        drafts = engine.drafts(prompts, seed=seed, num_rows=peers, progress=0.0)
        log.run("score drafts", lambda: trainer.panel.score(score_batch(drafts)))
        plans = [node.parent.sample for node in drafts if node.parent is not None]
        segments: dict[Stage, list[Segment]] = {
            "plan": [plan for plan in plans if plan is not None],
            "draft": [node.sample for node in drafts if node.sample],
        }
        if "critique" in names:
            looked_at = [given_image(draft.prompt, draft.image) for draft in drafts[::peers]]
            critiques = engine.critiques(looked_at, seed=seed, num_rows=peers)
            segments["critique"] = [node.sample for node in critiques if node.sample]
        if "refinement" in names:
            asked = [always_edits(critique) for critique in critiques]
            refined = [node for node in engine.refinements(asked, seed=seed, progress=0.0) if node is not None]
            segments["refinement"] = [node.sample for node in refined if node.sample]
            log.run("score refinements", lambda: trainer.panel.score(score_batch(refined)))
    return Rollouts(segments=segments)
