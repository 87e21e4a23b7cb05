"""Several processes of one run: how they come together as a launcher starts them, end together, and leave.

In one process every function does nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread
from typing import Any

from r3_rl import ranks
from r3_rl.errors import InputError, R3Error, RunError

_FAILED = "failed"
_HERE = "here"
"""With a rank behind it: the process has joined."""
_BEAT = "beat"
"""With a rank behind it: a number that grows as long as the process lives."""
_BEAT_S = 1.0
_SILENT_S = 10.0
"""Without a beat a process is taken for gone; a machine that is busy delays beats."""
_GRACE_S = 15.0
"""For a process to end by itself after another one failed."""
_JOIN_S = 600.0
"""For all processes to come: a launcher ends those that wait for one that died, plain environment variables do not."""


def launched() -> tuple[int, int]:
    """(rank, number of processes) as the launcher says; needs no torch.

    >>> launched() if "WORLD_SIZE" not in os.environ else (0, 1)
    (0, 1)
    """
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


_board: Any = None
"""Where a process that fails says so, since whoever waits for it hears nothing."""


def join(*, within_s: float = _JOIN_S) -> None:
    """Joins the launcher's group, on the GPU of this process where there are GPUs; nothing in a single process.

    Raises InputError if the environment does not say where, RunError if not all processes come in time.
    """
    global _board
    import torch
    import torch.distributed as dist

    if launched()[1] == 1 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    # the others wait while the first one measures and draws; if it ends, their launcher ends them
    patience = timedelta(hours=4)
    # counts and numbers travel between hosts' memories, gradients between devices
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    own, everybody = launched()
    store = _met(own, everybody, within_s)
    store.set_timeout(patience)  # the bound was for joining alone
    group = dist.PrefixStore("group", store)
    dist.init_process_group(backend, store=group, rank=own, world_size=everybody, timeout=patience)
    _board = dist.PrefixStore("board", store.clone())


def _met(own: int, everybody: int, within_s: float) -> Any:
    """The store of the launcher, or else that of rank 0, once all processes have signed in it."""
    from torch.distributed import DistError, PrefixStore, TCPStore

    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if not host or not port.isdecimal():
        raise InputError(
            f"one of {everybody} processes (WORLD_SIZE), but MASTER_ADDR and MASTER_PORT do not say where they meet",
            hint="start them with torchrun, or set both",
        )
    is_agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    keeps = own == 0 and not is_agents
    limit = timedelta(seconds=within_s)
    try:
        # without waiting for the others, which would not say who is missing
        store = TCPStore(host, int(port), everybody, keeps, timeout=limit, wait_for_workers=False, multi_tenant=True)
    except DistError as error:
        where = "cannot open" if keeps else f"rank {own}: nobody within {within_s:.0f} s, rank 0 or the launcher, at"
        raise RunError(
            f"{where} {host}:{port} ({str(error).splitlines()[0]})", hint="did rank 0 start, and is the address right?"
        ) from error
    if is_agents:  # torchrun keeps its store when it starts all again: what was said before must not count
        store = PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    keys = {each: f"{_HERE}{each}" for each in range(everybody)}
    try:
        store.set(keys[own], "")
        store.wait(list(keys.values()), limit)
    except DistError as error:
        raise RunError(
            f"rank {own}: {_missing(store, keys)} of {everybody} processes did not join within {within_s:.0f} s",
            hint="what ended it? its own output says; start all again",
        ) from error
    return store


def _missing(store: Any, keys: Mapping[int, str]) -> str:
    try:
        late = [each for each, key in keys.items() if not store.check([key])]
    except RuntimeError:  # who kept the store gave up first
        return "some, or rank 0,"
    return f"rank{'s' if len(late) > 1 else ''} {', '.join(map(str, late))}"


def join_alone() -> None:
    """A group of this process only, for what is made for groups; nothing where there is one."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


@contextmanager
def one_fate() -> Iterator[None]:
    """Inside, the processes of a run end together: the first one that fails names its rank and the cause in one line;
    the others end within seconds, wherever they wait for it, and say nothing."""
    board, own = _board, ranks.rank()
    if ranks.count() == 1 or board is None:
        yield
        return
    over = Event()
    Thread(target=_watch, args=(board, own, over), daemon=True).start()
    try:
        yield
    except BaseException as error:
        heard = isinstance(error, R3Error) and error.rank not in (None, own)
        if heard or not _first(board, own):
            raise SystemExit(1) from None  # the other one says it, or what it met with is the other's end
        if isinstance(error, R3Error):
            error.message = f"rank {own}: {error.message}"
        elif isinstance(error, Exception):
            met = f"{type(error).__name__}: {' '.join(str(error).split())}"
            gone = _gone(board, own) if isinstance(error, RuntimeError) else []  # a collective without its peers
            words = f"gone without a word, killed or out of memory; rank {own} met with {met}"
            lines = [f"rank {each}: {words}" for each in gone]
            print("\n".join(lines) or f"rank {own}: {met}", file=sys.stderr, flush=True)
        raise
    finally:
        over.set()


def _first(board: Any, own: int) -> bool:
    """Whether no other process failed before; then this one is on the board."""
    try:
        return bool(board.compare_set(_FAILED, "", str(own)) == str(own).encode())
    except RuntimeError:  # the process that keeps the board is gone, rank 0 unless a launcher keeps it
        return own <= 1


def _gone(board: Any, own: int) -> list[int]:
    """The processes that show no sign of life any more."""
    others = [each for each in range(ranks.count()) if each != own]
    try:
        seen = {each: _last_beat(board, each) for each in others}
        end = time.monotonic() + _SILENT_S
        while others and time.monotonic() < end:
            time.sleep(_BEAT_S / 4)
            others = [each for each in others if _last_beat(board, each) == seen[each]]
    except RuntimeError:
        return [0] if own else []
    return others


def _last_beat(board: Any, each: int) -> bytes:
    key = f"{_BEAT}{each}"
    return bytes(board.get(key)) if board.check([key]) else b""


def _watch(board: Any, own: int, over: Event) -> None:
    """Shows that this process lives; ends it if another one has failed and it does not end by itself."""
    beat = 0
    while not over.wait(_BEAT_S):
        beat += 1
        try:
            board.set(f"{_BEAT}{own}", str(beat))
            failed = board.check([_FAILED])
        except RuntimeError:
            failed = True
        if failed and not over.wait(_GRACE_S):
            os._exit(1)  # it waits in a collective, which nothing interrupts


def leave() -> None:
    """Ends the group; without it the others may report a broken connection."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
