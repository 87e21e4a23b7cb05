"""Settings of the whole process that a scorer must leave as they are: looked at around its calls, put back, and said.

Scorers run in threads of the process that trains. One that changes the working folder, torch's default type or the seed
of `random` or `numpy.random` changes it for everybody. Signal handlers are safe: Python sets them from the main thread
only. Torch's seed is not put back: the update seeds it for itself while held-out scorers run. A scorer that needs any
of this to itself belongs into its own process (`isolate: true`).
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

_WORDS = 624  # of a Mersenne twister's state
_MOST_TURNS = 2000
_PUT_BACK = "it was put back, as other code of this process relies on it (`isolate: true` gives a scorer a process)"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is looked at, at one moment."""

    folder: str
    """Working folder; empty when it is gone."""
    dtype: Any
    """torch's default type; None before torch is imported, which means float32."""
    python: Any
    """State of `random`."""
    numpy: Any
    """State of `numpy.random`."""

    @classmethod
    def now(cls) -> Settings:
        torch = sys.modules.get("torch")
        folder = ""
        with suppress(OSError):
            folder = os.getcwd()
        return cls(
            folder=folder,
            dtype=None if torch is None else torch.get_default_dtype(),
            python=random.getstate(),
            numpy=np.random.get_state(),
        )

    def put_back(self, now: Settings) -> list[str]:
        """Undo what has changed since; returns each change in words. Drawing random numbers is not a change."""
        changes = []
        if self.folder and now.folder != self.folder:
            with suppress(OSError):
                os.chdir(self.folder)
            changes.append(f"the working folder (to {now.folder or 'one that is gone'})")
        torch = sys.modules.get("torch")
        if torch is not None and now.dtype is not None:
            dtype = torch.float32 if self.dtype is None else self.dtype
            if now.dtype != dtype:
                torch.set_default_dtype(dtype)
                changes.append(f"torch's default type (to {str(now.dtype).removeprefix('torch.')})")
        if _seeded(np.array(self.python[1][:_WORDS], np.uint32), np.array(now.python[1][:_WORDS], np.uint32)):
            random.setstate(self.python)
            changes.append("the seed of Python's random numbers")
        if self.numpy[0] == "MT19937" and _seeded(self.numpy[1], now.numpy[1]):
            np.random.set_state(self.numpy)
            changes.append("the seed of numpy's random numbers")
        return changes


def _seeded(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether a twister's words are not what drawing alone makes of them; both generators are the same twister."""
    if np.array_equal(before, after):
        return False
    drawn = np.random.RandomState()
    drawn.set_state(("MT19937", before, _WORDS, 0, 0.0))
    for _ in range(_MOST_TURNS):
        drawn.bytes(4 * _WORDS)
        if np.array_equal(drawn.get_state()[1], after):  # type: ignore[index]
            return False
    return True


class SettingsWatch:
    """Compares the settings after calls with those before; there is one for the process, whatever runs scorers.

    What changed is undone when no other call is running: a change that another one makes and undoes by itself, such as
    while it loads weights, is not cut in two.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: Counter[str] = Counter()
        self._together: set[str] = set()
        self._before: Settings | None = None

    def note(self) -> None:
        """Take the settings as they are for right; called by whoever asks scorers, while none is running."""
        with self._lock:
            if not self._running:
                self._before = Settings.now()

    def enter(self, name: str) -> None:
        """A call of a scorer begins."""
        with self._lock:
            if not self._running:
                self._together.clear()
            self._running[name] += 1
            self._together.add(name)

    def leave(self, name: str) -> list[str]:
        """A call has ended: undo what is no longer as it was, and say what the scorer (or one beside it) changed."""
        with self._lock:
            self._running -= Counter([name])
        return self.look(name)

    def look(self, name: str) -> list[str]:
        """As `leave`, for asynchronous calls: they run between others, so nobody waits for their end."""
        with self._lock:
            if self._running or self._before is None:
                return []
            now = Settings.now()
            changes = self._before.put_back(now)
            if not changes:
                self._before = now  # numbers were drawn
            others = ", ".join(sorted(self._together - {name}))
        beside = f"(or one that ran at the same time: {others}) " if others else ""
        return [f"{beside}changed {change}; {_PUT_BACK}" for change in changes]


WATCH = SettingsWatch()
