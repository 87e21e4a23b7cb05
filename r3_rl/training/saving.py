"""A checkpoint on its way to the disk. The run waits for a small one. Full weights are copied, and a thread writes the
copies, hashes them and gives the checkpoint its name while training goes on."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from safetensors import SafetensorError
from transformers.trainer_callback import TrainerState

from r3_rl import ranks
from r3_rl.errors import RunError
from r3_rl.training.manifest import complete
from r3_rl.training.parts import PartsError, Rest

LAST_S = 600.0
"""A run that fails waits so long, at most, for a checkpoint that is still being written."""


class Saving:
    """One checkpoint, in every process. It is never half there: the folder gets its name when all of it is written.

    Args:
        partial: where it is written.
        folder: the name that it gets.
        rest: of the learner.
        state: of the run, as it is saved.
    """

    def __init__(self, partial: Path, folder: Path, *, rest: Rest, state: TrainerState) -> None:
        self.folder, self._partial, self._rest = folder, partial, rest
        self.state = copy.copy(state)
        """As it was then; the run's goes on."""
        self.state.log_history = list(state.log_history)
        self.in_background = rest is not None
        self._written: Future[None] = Future()
        Thread(target=self._write, name=folder.name, daemon=True).start()

    def _write(self) -> None:
        try:
            if self._rest is not None:
                self._rest()
            if ranks.rank() == 0:
                complete(self._partial, self.folder, step=self.state.global_step, num_processes=ranks.count())
        except BaseException as error:
            self._written.set_exception(error)
        else:
            self._written.set_result(None)

    @property
    def written(self) -> bool:
        """Whether nothing is left to be done in this process, well or not."""
        return self._written.done()

    def wait(self, seconds: float | None = None) -> None:
        """Until then, in this process alone, and however it ends."""
        wait([self._written], seconds)

    def finish(self) -> None:
        """Wait for it in all processes, which all call it. Raises RunError when one of them could not write; what was
        written is then removed."""

        def written() -> None:
            with writing(self.folder.parent):
                self._written.result()

        with removed_if_not_written(self._partial):
            ranks.together(written)


class Savings:
    """The checkpoints of a run, of which one at a time is on its way.

    Args:
        on_saved: called with each one that is whole, in the order in which they were begun.
    """

    def __init__(self, on_saved: Callable[[Saving], None]) -> None:
        self._on_saved = on_saved
        self._pending: Saving | None = None

    def begin(self, save: Callable[[], Saving]) -> None:
        """Save, after what is still on its way; without a thread's help all of it before this returns."""
        self.settle(wait=True)
        self._pending = save()
        if not self._pending.in_background:
            self.settle(wait=True)

    def settle(self, *, wait: bool = False) -> None:
        """Between two steps: finish what is on its way, if it is written in all processes, or wait until it is."""
        if self._pending is None or not (wait or all(ranks.everyone(self._pending.written))):
            return
        saving, self._pending = self._pending, None
        saving.finish()
        self._on_saved(saving)

    def __enter__(self) -> Savings:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """All is on the disk when a run ends. In a process that fails the last checkpoint still gets its name, for the
        others' threads go on too; whoever interrupts a run a second time does not wait."""
        if kind is None:
            self.settle(wait=True)
        elif self._pending is not None and issubclass(kind, Exception):
            self._pending.wait(LAST_S)


@contextmanager
def removed_if_not_written(partial: Path) -> Iterator[None]:
    """A full disk gets its room back."""
    try:
        yield
    except RunError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what goes wrong while a checkpoint is written into one line: of a full disk torch says `unexpected pos`.

    Raises RunError.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        there = next(path for path in (folder, *folder.parents) if path.is_dir())
        free = shutil.disk_usage(there).free / 2**30
        unwritten = RunError(
            f"the checkpoint could not be written: {error} ({free:.1f} GiB are free at {folder})",
            hint="make room, then --resume goes on from the last whole checkpoint",
        )
        unwritten.rank = error.rank if isinstance(error, PartsError) else None
        raise unwritten from error
