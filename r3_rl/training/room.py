"""Room on the disk, looked at before the step that needs it: a checkpoint that does not fit loses the step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from r3_rl import ranks
from r3_rl.errors import RunError
from r3_rl.observe.memory import gib
from r3_rl.policy.adapters import adapted_layers
from r3_rl.training.callbacks import saves_after

REST_BYTES = 16 << 20
"""Kept for what a run writes beside its checkpoints: metrics, images, the report."""


class RoomCallback(TrainerCallback):
    """Ends the run before it begins, and before a step that ends with a checkpoint, when the checkpoint would not fit.

    When room gets short before another step it says so once, so that there is time to make some.

    Args:
        needed: bytes of the next checkpoint, about; asked of the first process.
    """

    def __init__(self, needed: Callable[[], int]) -> None:
        self.needed = needed
        self.said = False

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Nothing is lost yet."""
        if args.save_strategy == "steps" and state.global_step < args.max_steps:
            ranks.of_first(lambda: refuse_without_room(Path(args.output_dir), self.needed(), "a checkpoint"))

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Steps that were done since the last checkpoint are lost when the next one cannot be written."""
        if args.save_strategy != "steps":
            return
        folder, step = Path(args.output_dir), state.global_step + 1
        if saves_after(args, step):
            ranks.of_first(lambda: refuse_without_room(folder, self.needed(), f"checkpoint-{step}"))
        elif ranks.rank() == 0 and not self.said:
            why = lacking_room(folder, self.needed(), "the next checkpoint")
            self.said = bool(why)
            if why:
                print(f"{why}; make room before it is saved", flush=True)


def lacking_room(folder: Path, needed_bytes: int, what: str) -> str:
    """What is needed and what is there, in words, or "" where it fits.

    >>> lacking_room(Path("runs"), 0, "nothing"), lacking_room(Path(), 1 << 70, "the tape")[:47]
    ('', 'the tape needs 1099511627776.02 GiB on the disk')
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free, needed = shutil.disk_usage(there).free, needed_bytes + REST_BYTES if needed_bytes else 0
    return f"{what} needs {gib(needed)} on the disk and {gib(free)} are free at {folder}" if free < needed else ""


def refuse_without_room(folder: Path, needed_bytes: int, what: str) -> None:
    """Raises RunError when the disk of the folder, which need not be there yet, has too little room."""
    if why := lacking_room(folder, needed_bytes, what):
        raise RunError(why, hint="make room, or name another disk")


def weights_bytes(module: nn.Module) -> int:
    """How large the saved weights become: those of the adapter, or all."""
    adapted = bool(adapted_layers(module))
    return sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad or not adapted)
