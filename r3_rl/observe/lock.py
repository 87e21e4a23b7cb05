"""One process writes a run folder at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from r3_rl.errors import InputError, RunError

LOCK = ".lock"
_HELD = (errno.EACCES, errno.EAGAIN)


@contextmanager
def sole_writer(run_folder: Path) -> Iterator[None]:
    """Inside, no other process of this machine (or of another one that shares the folder) is let in.

    The system keeps the lock, and drops it when the process ends, however it ends: `.lock` only says who holds it.
    It is the process's own: a child that a scorer forks does not hold on to it, and a second call in the same
    process is not kept out.

    Raises:
        RunError: another process is inside; the message names it.
        InputError: the folder cannot be written.
    """
    path = run_folder / LOCK
    try:
        stream = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write to {run_folder}: {error.strerror}", hint="choose another folder") from error
    with stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                stream.seek(0)
                who = " ".join(stream.read().split()) or "another process"
                raise RunError(
                    f"{run_folder} is being written by {who}", hint="wait until it ends, or end it"
                ) from None
            print(f"{run_folder}: this file system keeps no locks ({error.strerror}); nobody else is kept out")
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        stream.flush()
        try:
            yield
        finally:
            stream.truncate(0)  # a run that has ended names no machine
