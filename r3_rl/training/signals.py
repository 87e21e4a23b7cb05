"""Signals that end a run in order: the step is finished, a checkpoint is saved, and the run stops."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from r3_rl import ranks

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C; a scheduler's or a container's notice; a terminal that was closed."""
_SAME_SIGNAL_S = 2.0


class SignalCallback(TrainerCallback):
    """The first signal finishes the step, saves and stops; the second one stops immediately, with KeyboardInterrupt.

    In a `with` block the signals are taken over from its begin to its end, however it ends: before the first step and
    after the last one, where there is no step to finish, a signal stops immediately. Without one they are while
    training goes on. All of several
    processes stop at the same step, whichever of them was asked. They get the terminal's signal and their launcher's,
    and a closed terminal and its shell send one each: what follows within two seconds is then not a second one.

    Args:
        environment: says whether a launcher started the process.
        warning_signal: of a scheduler, for a `with` block; training has its own in the arguments.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ, *, warning_signal: str | None = None) -> None:
        self.asked: int | None = None
        """The signal's number; None while the run goes on."""
        self._launched, self._warning_signal = "RANK" in environment, warning_signal
        self._in_block = self._training = False
        self._asked_at = 0.0
        self._old: dict[int, Any] = {}
        self._terminals: list[int] = []

    def __enter__(self) -> SignalCallback:
        self._in_block = True
        self._take(self._warning_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        self._in_block = False
        self._release()

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """From now on there is a step to finish."""
        self._training = True
        if not self._in_block:
            self._take(args.warning_signal)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Gives the signals back, to the block around training where there is one."""
        self._training = False
        if not self._in_block:
            self._release()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stops on a whole step, and on rollouts that have had all their updates: a resumed run makes fresh ones."""
        asked = [number for number in ranks.everyone(self.asked) if number is not None]
        if asked and self.asked is None:
            self._ask(asked[0])
        if self.asked is not None and state.global_step % args.num_iterations == 0:
            control.should_save = True
            control.should_training_stop = True

    def _ask(self, number: int) -> None:
        self.asked, self._asked_at = number, time.monotonic()

    def _take(self, warning_signal: str | None) -> None:
        """`ENDING`, except SIGHUP under nohup, and the warning signal where it is free."""
        self._terminals = [stream for stream in (1, 2) if os.isatty(stream)]
        for number in ENDING:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._old[number] = signal.signal(number, self._handle)
        if warning_signal and signal.getsignal(number := signal.Signals[warning_signal]) == signal.SIG_DFL:
            self._old[number] = signal.signal(number, self._handle)

    def _release(self) -> None:
        while self._old:
            signal.signal(*self._old.popitem())

    def _leave_closed_terminals(self) -> None:
        """What the run still prints would be an error."""
        for stream in self._terminals:
            if not os.isatty(stream):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._leave_closed_terminals()
        if not self._training:
            self._release()
            raise KeyboardInterrupt(number)
        if self.asked is None:
            self._ask(number)
            _say(f"\n{signal.Signals(number).name}: finishing the step, then saving (a second one stops immediately)\n")
        elif time.monotonic() - self._asked_at > _SAME_SIGNAL_S or not (self._launched or number == signal.SIGHUP):
            self._release()  # a third one acts as if nobody listened
            raise KeyboardInterrupt(number)


def _say(text: str) -> None:
    """Print past Python's buffers, which a handler may have interrupted; the first process speaks for all."""
    if ranks.rank() == 0:
        with suppress(OSError):
            os.write(1, text.encode())
