"""How a run ended, in one sentence with what to do: by its last step, its clock, its metric, a guard or a signal."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

from r3_rl.evaluate.best import KeepBest, stopped_words
from r3_rl.observe.ending import Ending
from r3_rl.observe.progress import duration
from r3_rl.training.manifest import numbered
from r3_rl.training.trainer import R3Trainer

SLACK = 1.05
"""By how much the next run may be slower."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What a run took, for the time that all of its steps would take."""

    steps: int
    """Made by this process's call."""
    training_s: float
    around_s: float
    """Loading and measuring before and after."""
    minutes: bool
    """Whether the limit is `r3 demo --minutes`, which is for all of it, and not `training.time_budget_s`."""

    def would_do(self, num_steps: int) -> str:
        """The limit that is long enough for so many steps, as it is written.

        >>> Pace(steps=2, training_s=10, around_s=88, minutes=True).would_do(160)
        'r3 demo --minutes 16'
        >>> Pace(steps=2, training_s=10, around_s=88, minutes=False).would_do(160)
        'training.time_budget_s=840'
        """
        training_s = self.training_s / max(self.steps, 1) * num_steps
        if self.minutes:
            return f"r3 demo --minutes {math.ceil(SLACK * (training_s + self.around_s) / 60)}"
        return f"training.time_budget_s={math.ceil(SLACK * training_s)}"


def ending_of(trainer: R3Trainer, folder: Path, pace: Pace, *, stopped_by: int | None, keep: KeepBest | None) -> Ending:
    """How a run ended that is not training any more.

    Args:
        trainer: after `train`.
        folder: of the run.
        pace: what it took.
        stopped_by: the signal that ended it, if one did.
        keep: of a run that keeps its best adapter.
    """
    step, num_steps, said = trainer.state.global_step, trainer.args.max_steps, trainer.guards.stopped
    if stopped_by is not None:
        words = f"stopped by {Signals(stopped_by).name} at step {step}; {how_to_go_on(folder)}"
        return Ending(step=step, num_steps=num_steps, why="signal", words=words)
    if said is not None:
        return Ending(step=step, num_steps=num_steps, why="guard", words=str(said))
    if step >= num_steps:
        return Ending(step=step, num_steps=num_steps, why="done")
    if keep is not None and keep.stops and keep.course is not None:
        words = stopped_words(keep.course, step, num_steps)
        return Ending(step=step, num_steps=num_steps, why="metric", words=words)
    each = duration(pace.training_s / max(pace.steps, 1) * num_steps)
    around = f" and {duration(pace.around_s)} of loading and measuring" if pace.minutes else ""
    words = (
        f"ended by its clock at step {step} of {num_steps}; all of them take {each}{around} at this pace, so give it "
        f"{pace.would_do(num_steps)}"
    )
    return Ending(step=step, num_steps=num_steps, why="clock", words=words)


def how_to_go_on(folder: Path) -> str:
    """The command that resumes the run, or that there is nothing to resume."""
    if numbered(folder / "checkpoints"):
        return f"go on with: r3 train --resume {shlex.quote(str(folder))}"
    return "nothing is saved yet, start the run again"
