"""The same prompts drawn again and again while a run goes on, so that its pictures can be compared over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from r3_rl.evaluate.reflection import Judge, judged
from r3_rl.observe.recorder import Recorder
from r3_rl.policy.adapters import adapter_merged
from r3_rl.policy.base import Policy
from r3_rl.rollout.engine import run_loop
from r3_rl.scoring.batch import ScoreBatch, to_uint8
from r3_rl.scoring.panel import Panel
from r3_rl.stages.settings import LoopSettings
from r3_rl.types import Prompt, Trajectory

Verdicts = Callable[[Sequence[Trajectory]], list[Trajectory]]
"""Trajectories -> the same ones with a verdict for every image."""


@dataclass(kw_only=True, eq=False)
class Gallery:
    """Fixed prompts, drawn with the loop and recorded."""

    policy: Policy
    prompts: Sequence[Prompt]
    settings: LoopSettings
    rounds: int
    seed: int
    verdicts: Verdicts
    recorder: Recorder

    def draw(self, step: int) -> None:
        """Draws and records the prompts as they come out now, as phase `during`."""
        with adapter_merged(self.policy.module):
            self._draw(step, "during")

    def draw_base(self) -> None:
        """Draws and records what the base makes of the prompts, as phase `before`."""
        with self.policy.reference():
            self._draw(0, "before")

    def _draw(self, step: int, phase: str) -> None:
        walked = run_loop(self.policy, self.prompts, self.settings, rounds=self.rounds, seed=self.seed)
        self.record(step, self.verdicts(walked), phase)

    def record(self, step: int, trajectories: Sequence[Trajectory], phase: str) -> None:
        """Keeps trajectories of these prompts that were drawn elsewhere, before or after training."""
        for trajectory in trajectories:
            self.recorder.trajectory(step, trajectory, phase=phase)


class BetweenSteps(TrainerCallback):
    """Does things after every so many steps, the last one left out: the run is measured there anyway.

    Args:
        done: each is told the step; nothing of the run's random state is used.
        every: steps.
    """

    def __init__(self, done: Sequence[Callable[[int], None]], every: int) -> None:
        self.done, self.every = done, every

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Between two steps."""
        if state.global_step % self.every == 0 and state.global_step < state.max_steps:
            for do in self.done:
                do(state.global_step)


def by_judge(judge: Judge) -> Verdicts:
    """Verdicts of a world that can be inspected."""
    return lambda trajectories: judged(trajectories, judge)


def by_panel(panel: Panel, *, counted: bool = False) -> Verdicts:
    """Verdicts of scorers; what they say here is no part of a training step's metrics unless it is `counted`."""

    def verdicts(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        found = iter(panel.score(_batch(trajectories), counted=counted))
        return [replace(t, rounds=tuple(replace(r, verdict=next(found)) for r in t.rounds)) for t in trajectories]

    return verdicts


def _batch(trajectories: Sequence[Trajectory]) -> ScoreBatch:
    """Every image of every trajectory, with what it came from."""
    rounds = [
        (t.prompt, r, before) for t in trajectories for r, before in zip(t.rounds, (None, *t.rounds), strict=False)
    ]
    critiques = [r.critique.segment.text if r.critique else None for _, r, _ in rounds]
    plans = [r.plan.text if r.plan else "" for _, r, _ in rounds]
    return ScoreBatch(
        prompts=[prompt for prompt, _, _ in rounds],
        images=[to_uint8(r.image.image) for _, r, _ in rounds],
        texts=[critique or plan for critique, plan in zip(critiques, plans, strict=True)],
        draft_images=[to_uint8(before.image.image) if before else None for _, _, before in rounds],
        critiques=critiques,
    )
