"""Guards in a run: they look at every logged line, say what they find, and end the run if they are told to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from r3_rl import ranks
from r3_rl.observe.guards import LiveGuards, Said, ratio_tolerance_of
from r3_rl.observe.recorder import row_of


class GuardCallback(TrainerCallback):
    """Says each finding once; one whose action is `stop` saves a checkpoint and ends the run, in all processes.

    Actions are those of `args.guards`. What a resumed run has logged before was said then.
    """

    def __init__(self, say: Callable[[str], None] = print) -> None:
        self.say = say
        self.stopped: Said | None = None
        """What ended the run; None while it goes on and after an end of another kind."""
        self._live: LiveGuards | None = None

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, model: nn.Module | None = None, **kwargs: Any
    ) -> None:
        """Reads the lines that a resumed run has logged."""
        assert model is not None
        self.stopped = None
        self._live = LiveGuards(
            (row_of(line["step"], _numbers(line)) for line in state.log_history if "train_runtime" not in line),
            actions=dict(args.guards),
            ratio_tolerance=_tolerance(model),
        )

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """The first process looks; the others do what it finds."""
        if logs and "train_runtime" not in logs:
            found = ranks.of_first(lambda: self._look(state.global_step, logs))
            self.stopped = self.stopped or found
            self._stop(args, state, control)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Between two updates on the same rollouts nothing is saved: the run ends after the last of them."""
        self._stop(args, state, control)

    def _look(self, step: int, logs: Mapping[str, Any]) -> Said | None:
        assert self._live is not None
        said = self._live.add(row_of(step, _numbers(logs)))
        for sentence in map(str, said):
            self.say(sentence)
        return next((one for one in said if one.stops), None)

    def _stop(self, args: Any, state: TrainerState, control: TrainerControl) -> None:
        if self.stopped is not None and state.global_step % args.num_iterations == 0:
            control.should_save = True
            control.should_training_stop = True


def _numbers(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name != "step"}


def _tolerance(module: nn.Module) -> float:
    """That of the coarsest type in the policy: an adapter is float32 whatever its base computes in."""
    types = {p.dtype for p in module.parameters() if p.dtype.is_floating_point}
    coarsest = max(types, key=lambda dtype: torch.finfo(dtype).eps)
    return ratio_tolerance_of(str(coarsest).removeprefix("torch."))
