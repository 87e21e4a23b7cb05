"""How much memory a piece of work takes, on a GPU and on a CPU, and how much there is.

On a GPU torch counts. On a CPU nothing does: the system's peak of a process never falls again, so it cannot tell one
stage from another. There the tensors that are made while the work runs are counted here, as long as they live.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(kw_only=True)
class Weighed:
    """What a block took; filled when it ends."""

    peak_bytes: int = 0
    """Most that its own tensors held at once, beside what was there before."""


@contextmanager
def weighed(device: torch.device | str = "cpu") -> Iterator[Weighed]:
    """Measures the block. A CPU pays a few microseconds an operation for it: do not take its time meanwhile.

    Scratch memory inside of an operation is not seen on a CPU.

    >>> with weighed() as one:
    ...     total = (torch.zeros(1000, 1000) + 1).sum()
    >>> one.peak_bytes
    8000000
    """
    result = Weighed()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield result
        torch.cuda.synchronize(device)
        result.peak_bytes = torch.cuda.max_memory_allocated(device) - before
        return
    with _LivingTensors() as tensors:
        yield result
    result.peak_bytes = tensors.peak


class _LivingTensors(TorchDispatchMode):
    """Adds up the storages that operations return and did not get, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._living: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[Any], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(out):
            key = storage._cdata
            if key not in given and key not in self._living:
                self._living.add(key)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, storage.nbytes())
        return out

    def _gone(self, key: int, num_bytes: int) -> None:
        self._living.discard(key)
        self.now -= num_bytes


def _storages(tree: Any) -> list[Any]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def peak_bytes(device: torch.device | str = "cpu") -> int:
    """Largest memory held so far: on the accelerator by torch, else by the process (0 where the system cannot say).

    >>> peak_bytes() > 10_000_000
    True
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if platform.system() == "Darwin" else used * 1024


def held_bytes(device: torch.device | str = "cpu") -> int:
    """Memory in use now: on a GPU by tensors, else what the allocator has handed out. What was freed and the allocator
    keeps for later is not counted; on a CPU it grows for hundreds of steps although nothing leaks. Where no allocator
    says what is in use, all that the process holds.

    >>> held_bytes() > 1_000_000
    True
    """
    if torch.device(device).type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    if (look := _mallinfo()) is not None:
        found = look()
        return int(found.uordblks + found.hblkhd)
    return int(psutil.Process().memory_info().rss)


class _MallInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


@functools.cache
def _mallinfo() -> Callable[[], Any] | None:
    """glibc's count of what is in use: `uordblks` in its heaps, `hblkhd` in blocks of their own."""
    try:
        look = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError, TypeError):  # another system's allocator
        return None
    look.restype = _MallInfo
    return look  # type: ignore[no-any-return]


def free_bytes(device: torch.device | str = "cpu") -> int:
    """Memory that may still be taken on the device: as its driver or the system says.

    >>> free_bytes() > 0
    True
    """
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def gib(num_bytes: float) -> str:
    """Bytes in words: GiB, and below one MiB.

    >>> gib(29_214_520_256), gib(3_000_000)
    ('27.21 GiB', '2.9 MiB')
    """
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
