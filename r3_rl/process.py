"""The process before torch is loaded: glibc's allocator and the numbers of threads.

glibc gives large blocks back to the system after every training step and fetches them again, page by page. Told to keep
them, a step of the embedded model took a quarter of the time. A server of scorers wants the opposite: what a large
request took must not stay. The allocator reads its settings once, at the start of the process, so the process replaces
itself.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

KEEPING = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
"""Freed memory stays with the process."""
GIVING_BACK = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
    "MALLOC_ARENA_MAX": "2",
}
"""Freed images go back to the system. A threshold that is set stays; glibc otherwise raises its own, and keeps what is
free on top of a thread's arena, which no call trims."""
# Set in the new process, which must not start another one.
MARKER = "R3_PROCESS_READY"


def prepare_process(num_threads: int | None = None, *, keep_memory: bool = True) -> None:
    """Start the process again with the allocator's settings where that helps, and set the thread count.

    Call it before torch is imported. Values that the user has set stay as they are; off Linux and glibc only the
    threads are set. Does not return when the process is replaced.

    Args:
        num_threads: threads of a process; None takes `OMP_NUM_THREADS` where it is set, else the physical cores.
        keep_memory: whether freed memory stays with the process, which is faster, or goes back to the system.
    """
    if "torch" in sys.modules:
        raise AssertionError("prepare_process comes before torch is imported")
    if num_threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(num_threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(physical_cores()))
    # numpy's own pool: its idle threads spin on the cores that torch computes on (measured: lab book, entry 24)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    settings = KEEPING if keep_memory else GIVING_BACK
    if MARKER in os.environ or not _is_glibc() or all(name in os.environ for name in settings):
        return
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    os.environ[MARKER] = "1"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def physical_cores() -> int:
    """Cores this process may use, at least 1: hyper-threads count once, a container's quota is respected.

    >>> physical_cores() >= 1
    True
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_siblings(cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota()))


def _siblings(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota() -> int:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no control group, or "max": no limit
        return sys.maxsize


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, OSError, ValueError):
        return False
