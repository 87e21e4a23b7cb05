"""What steers and watches a run: when it logs, saves and ends; metrics to disk, screen and trackers; a time budget."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import DefaultFlowCallback, TrainerCallback, TrainerControl, TrainerState

from r3_rl import ranks
from r3_rl.errors import MissingPackageError
from r3_rl.observe.progress import RunProgress
from r3_rl.observe.recorder import Recorder


class FlowCallback(DefaultFlowCallback):
    """Logs and saves every so many steps, saves at the end, and ends the run after `max_steps`, by the arguments."""

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Comes before all other callbacks, which may ask for more."""
        last = state.global_step >= args.max_steps
        control.should_log |= state.global_step % args.logging_steps == 0
        control.should_save |= saves_after(args, state.global_step)
        control.should_training_stop |= last


def saves_after(args: Any, step: int) -> bool:
    """Whether a checkpoint is saved when so many steps are done, by the arguments."""
    return bool(args.save_strategy == "steps" and (step >= args.max_steps or step % args.save_steps == 0))


class TrackerCallback(TrainerCallback):
    """Every log goes to accelerate's trackers (tensorboard, wandb), from the first process.

    Raises MissingPackageError for a tracker whose package is not installed.
    """

    def __init__(self, names: Sequence[str]) -> None:
        if missing := [name for name in names if find_spec(name) is None]:
            raise MissingPackageError(
                f"report_to '{missing[0]}' needs the package {missing[0]}",
                hint="pip install 'r3-rl[track]'" if missing[0] == "tensorboard" else f"pip install {missing[0]}",
            )
        self.names = names
        self.trackers: list[Any] = []

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Starts them, with the arguments of the run."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        kinds = [LOGGER_TYPE_TO_CLASS[name] for name in self.names if state.is_world_process_zero]
        name = args.run_name or Path(args.output_dir).name
        self.trackers = [
            kind(name, args.output_dir) if kind.requires_logging_directory else kind(name) for kind in kinds
        ]
        plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in args.to_dict().items()}
        for tracker in self.trackers:
            tracker.start()
            tracker.store_init_configuration(plain)

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Hands a line on."""
        for tracker in self.trackers:
            tracker.log(logs or {}, step=state.global_step)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ends them."""
        for tracker in self.trackers:
            tracker.finish()


class RecordCallback(TrainerCallback):
    """Every log goes to `metrics.jsonl` and to the progress line."""

    def __init__(self, recorder: Recorder, progress: RunProgress) -> None:
        self.recorder, self.progress = recorder, progress

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Steps that a resumed run has done took none of this run's time."""
        self.progress.begin(state.global_step, limit_s=args.time_budget_s)

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """After every `logging_steps` steps, and once at the end with totals (left out)."""
        if logs and "train_runtime" not in logs:
            self.recorder.metrics(state.global_step, {k: v for k, v in logs.items() if k != "step"})
            self.progress.update(state.global_step, logs)


class TimeBudgetCallback(TrainerCallback):
    """Ends the run after `time_budget_s` of the arguments, as it stands when training begins, at the end of a step."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        self.begin = 0.0
        self.used = 0.0
        """Share of the time that had passed at the end of the last step, equal in all processes; 0 without a limit."""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Starts the clock."""
        self.seconds, self.begin, self.used = args.time_budget_s, time.monotonic(), 0.0

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stops when the time is up."""
        if self.seconds is None:
            return
        self.used = max(ranks.everyone((time.monotonic() - self.begin) / max(self.seconds, 1e-9)))
        if self.used > 1:
            control.should_training_stop = True
