"""Settings of the whole process that a scorer must leave as they are: looked at around its calls, put back, and said.

Scorers run in threads of the process that trains. One that changes the working folder, torch's default type or the seed
of `random` or `numpy.random` changes it for everybody. Signal handlers are safe: Python sets them from the main thread
only, and an alarm that one sets is taken back. Torch's seed is not put back: the update seeds it for itself while
held-out scorers run. A scorer that needs any of this to itself belongs into its own process (`isolate: true`).
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
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
    flags: Mapping[str, Any]
    """How torch computes, by the words of `_FLAGS`; empty before torch is imported."""
    umask: int | None
    """Rights that new files do not get; None where the system does not say."""
    alarm: bool
    """Whether an alarm is set, which would end the process."""

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
            flags={} if torch is None else {words: flag.read(torch) for words, flag in _FLAGS.items()},
            umask=_umask(),
            alarm=hasattr(signal, "getitimer") and signal.getitimer(signal.ITIMER_REAL)[0] > 0,
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
        for words, value in now.flags.items():
            if words in self.flags and self.flags[words] != value:
                _FLAGS[words].write(torch, self.flags[words])
                changes.append(f"{words} (to {value})")
        if self.umask is not None and now.umask not in (None, self.umask):
            os.umask(self.umask)
            changes.append(f"the rights of new files (umask to {now.umask:03o})")
        if now.alarm and not self.alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
            changes.append("the process's alarm")
        if _seeded(np.array(self.python[1][:_WORDS], np.uint32), np.array(now.python[1][:_WORDS], np.uint32)):
            random.setstate(self.python)
            changes.append("the seed of Python's random numbers")
        if self.numpy[0] == "MT19937" and _seeded(self.numpy[1], now.numpy[1]):
            np.random.set_state(self.numpy)
            changes.append("the seed of numpy's random numbers")
        return changes


@dataclass(frozen=True)
class _Flag:
    """A setting of torch's."""

    read: Callable[[Any], Any]
    write: Callable[[Any, Any], object]


_FLAGS = {
    "torch's float32 precision": _Flag(
        lambda torch: torch.get_float32_matmul_precision(), lambda torch, old: torch.set_float32_matmul_precision(old)
    ),
    "torch's deterministic algorithms": _Flag(
        lambda torch: torch.are_deterministic_algorithms_enabled(),
        lambda torch, old: torch.use_deterministic_algorithms(old),
    ),
    "torch's use of oneDNN": _Flag(
        lambda torch: torch.backends.mkldnn.enabled, lambda torch, old: setattr(torch.backends.mkldnn, "enabled", old)
    ),
    "torch's search for fast convolutions": _Flag(
        lambda torch: torch.backends.cudnn.benchmark, lambda torch, old: setattr(torch.backends.cudnn, "benchmark", old)
    ),
}


def _umask() -> int | None:
    """As the system says: Python can only read it by changing it, for all threads."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    return None


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
