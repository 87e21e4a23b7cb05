"""A scorer in a process of its own: what it does to the process, and how it ends, stays there.

A crash, `os._exit`, a hang and too much memory become missing scores with the cause; the next call starts the process
again. The scorer runs in the main thread there, so it may set signal handlers and alarms.

To the child goes pickle, which only this process writes; from the child comes JSON, which runs nothing here.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from r3_rl.errors import InputError, ScorerError
from r3_rl.scoring.answers import BrokenContract
from r3_rl.scoring.base import ScorerInfo
from r3_rl.scoring.frames import FrameTooLong, read_frame, write_frame

START_S = 600.0
"""Seconds for a scorer to be built: it may load weights."""
_LOOK_S = 0.05
_MAX_REPLY_BYTES = 64 << 20


class IsolatedScorer:
    """Calls a scorer that a child process has built; made by `load_isolated`.

    Args:
        scorer, params, base_folder: as `load_scorer` takes them.
        timeout_s: seconds of one call; then the process is ended.
        memory_gb: gigabytes (10^9 bytes) of memory that the process may use; None sets no limit. Linux only.

    Raises InputError and ScorerError for what `load_scorer` raises them for, and when the process dies while it builds.
    """

    def __init__(
        self,
        scorer: str,
        params: Mapping[str, Any],
        base_folder: str | Path = ".",
        *,
        timeout_s: float,
        memory_gb: float | None = None,
    ) -> None:
        if os.name != "posix":
            raise InputError("isolate: a scorer in its own process needs Linux or macOS")
        if memory_gb is not None and not Path("/proc/self/statm").exists():
            raise InputError("memory_gb: the memory of a process can be read on Linux only")
        self._build = {"scorer": scorer, "params": dict(params), "base_folder": str(base_folder)}
        self._timeout_s = timeout_s
        self._memory_bytes = None if memory_gb is None else int(memory_gb * 1e9)
        self._turn = threading.Lock()
        self._child: _Child | None = None
        card = self._start()
        self.info = TypeAdapter(ScorerInfo).validate_python(card["info"])
        # `inspect.signature` reads it: the scorer is handed what it would be handed in this process.
        self.__signature__ = _signature(card["parameters"], card["takes_all"])

    def __call__(self, *, log_metric: Any = None, log_extra: Any = None, **arguments: Any) -> list[float | None]:
        """Score the samples in the child; raises what went wrong there or with it."""
        with self._turn:
            if self._child is None:
                self._start()
            assert self._child is not None
            try:
                reply = self._child.ask(pickle.dumps(arguments), self._timeout_s, self._memory_bytes)
            except _Ended as ended:
                self._child = None
                raise ended.error from None
        for name, value in reply.get("logged", ()):
            if log_metric is not None:
                log_metric(name, value)
        if "broken" in reply:
            raise BrokenContract(reply["broken"], index=reply["index"])
        if "error" in reply:
            raise ScorerError(reply["error"])
        if log_extra is not None:
            for name, values in reply["extras"].items():
                log_extra(name, values)
        scores: list[float | None] = reply["scores"]
        return scores

    def close(self) -> None:
        """End the process; the next call would start it again."""
        with self._turn:
            if self._child is not None:
                self._child.end()
                self._child = None

    def _start(self) -> Any:
        child = _Child()
        try:
            card = child.ask(pickle.dumps({**self._build, "path": sys.path}), START_S, self._memory_bytes)
        except _Ended as ended:
            raise ScorerError(f"scorer '{self._build['scorer']}' cannot be built: {ended.error}") from None
        if "error" in card:
            child.end()
            raise (InputError if card["exit_code"] == 2 else ScorerError)(card["error"])
        self._child = child
        return card


def load_isolated(
    scorer: str,
    params: Mapping[str, Any],
    base_folder: str | Path = ".",
    *,
    timeout_s: float,
    memory_gb: float | None = None,
) -> IsolatedScorer:
    """Return a scorer built in a process of its own; the arguments are those of `IsolatedScorer`."""
    return IsolatedScorer(scorer, params, base_folder, timeout_s=timeout_s, memory_gb=memory_gb)


class _Ended(Exception):
    """The child is no more; `error` is what the call raises."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _Child:
    """The process and the socket to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "r3_rl.scoring.isolated_child", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the run, which ends its scorers itself
            )
        self._socket = ours
        self._finalizer = weakref.finalize(self, _end, self._process, ours)

    def end(self) -> None:
        """Kill the process and what it has started."""
        self._finalizer()

    def ask(self, payload: bytes, timeout_s: float, memory_bytes: int | None) -> Any:
        """Send one frame and return the reply; raises _Ended when the child is no more, which ends it for good."""
        deadline = time.monotonic() + timeout_s
        try:
            self._socket.settimeout(timeout_s)
            write_frame(self._socket.sendall, payload)
            self._socket.settimeout(None)
            return json.loads(read_frame(self._reader(deadline, memory_bytes), _MAX_REPLY_BYTES))
        except TimeoutError:
            error: Exception = TimeoutError(f"no answer within {timeout_s:g} s; its process was ended")
        except MemoryError as limit:
            error = limit
        except FrameTooLong as long:
            error = ScorerError(f"its answer has {long}")
        except (OSError, EOFError):
            error = ScorerError(self._how_it_ended())
        except ValueError as garbled:
            error = ScorerError(f"its process sent what is no answer ({garbled})")
        self.end()
        raise _Ended(error)

    def _reader(self, deadline: float, memory_bytes: int | None) -> Callable[[int], bytes]:
        def read(count: int) -> bytes:
            while not select.select([self._socket], [], [], _LOOK_S)[0]:
                if time.monotonic() > deadline:
                    raise TimeoutError
                if memory_bytes is not None and (used := _resident_bytes(self._process.pid)) > memory_bytes:
                    most = f"memory_gb {memory_bytes / 1e9:g}"
                    raise MemoryError(f"its process used {used / 1e9:.1f} GB of memory, over {most}, and was ended")
            return self._socket.recv(count)

        return read

    def _how_it_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(timeout=5.0)
            if code >= 0:
                return f"its process ended with exit code {code}"
            with contextlib.suppress(ValueError):
                return f"its process was ended by {signal.Signals(-code).name}"
            return f"its process was ended by signal {-code}"
        return "its process closed the connection"


def _end(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):  # it has just ended, which the socket will say
        return 0


def _signature(parameters: list[list[Any]], takes_all: bool) -> inspect.Signature:
    kinds = inspect.Parameter
    listed = [
        kinds(name, kinds.KEYWORD_ONLY, default=kinds.empty if demanded else None) for name, demanded in parameters
    ]
    return inspect.Signature([*listed, *([kinds("columns", kinds.VAR_KEYWORD)] if takes_all else [])])
