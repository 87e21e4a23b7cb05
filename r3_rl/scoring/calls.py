"""Calling scorers so that none can hang the run: each call in a daemon thread or in one event loop, with a time limit.

Python cannot end a thread. A call that ran into its limit is left behind: its late answer is dropped, and the process
may exit while it still runs.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from r3_rl.scoring.settings_watch import WATCH

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class CallResult:
    """What came of a call: an answer or an error, after some seconds of running."""

    answer: Any = None
    error: BaseException | None = None
    seconds: float = 0.0
    remarks: Sequence[str] = ()
    """What the call changed of the process, and was put back."""


class Caller:
    """Runs scorers: at most `num_workers` synchronous calls at once, and asynchronous ones in a loop of their own."""

    def __init__(self, num_workers: int) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, not {num_workers}")
        # Two loops: an async scorer that blocks its loop by mistake must not stop the clock that limits it.
        self._own = LoopThread("r3-panel")
        self._scorers = LoopThread("r3-async-scorers")
        self._slots = asyncio.Semaphore(num_workers)
        self._locks: dict[str, asyncio.Lock] = {}
        self._threads: dict[str, threading.Thread] = {}

    def submit(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Start a coroutine that uses `call`; the future holds its result."""
        WATCH.note()
        return self._own.submit(work)

    async def call(self, name: str, scorer: Callable[[], Any], *, timeout_s: float, thread_safe: bool) -> CallResult:
        """Call a scorer that has its arguments; the result holds what it raised, or a `TimeoutError` after `timeout_s`
        seconds of running."""
        if thread_safe:
            return await self._call(name, scorer, timeout_s)
        async with self._locks.setdefault(name, asyncio.Lock()):
            if name in self._threads and self._threads[name].is_alive():
                return CallResult(error=TimeoutError("an earlier call that ran into its time limit is still running"))
            return await self._call(name, scorer, timeout_s)

    async def _call(self, name: str, scorer: Callable[[], Any], timeout_s: float) -> CallResult:
        async with self._slots:
            start = time.monotonic()
            WATCH.enter(name)
            try:
                result = await _within(self._in_thread(name, scorer), timeout_s)
            finally:
                remarks = WATCH.leave(name)
        if inspect.isawaitable(result.answer):  # what calling an `async def` gives: it holds no slot while it waits
            running = asyncio.wrap_future(self._scorers.submit(_finish(result.answer)))
            result = await _within(running, timeout_s)
            remarks += WATCH.look(name)
        return replace(result, seconds=time.monotonic() - start, remarks=remarks)

    def _in_thread(self, name: str, scorer: Callable[[], Any]) -> asyncio.Future[CallResult]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[CallResult] = loop.create_future()

        def settle(result: CallResult) -> None:
            if not future.done():
                future.set_result(result)

        def work() -> None:
            try:
                result = CallResult(answer=scorer())
            except BaseException as error:  # a SystemExit in a thread would vanish without a word
                result = CallResult(error=error)
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, result)

        thread = threading.Thread(target=work, name=f"r3-scorer-{name}", daemon=True)
        self._threads[name] = thread
        thread.start()
        return future

    def close(self) -> None:
        """Cancel what waits and end the loops; calls that still run are left behind."""
        self._own.close()
        self._scorers.close()


async def _within(future: asyncio.Future[CallResult], timeout_s: float) -> CallResult:
    done, _ = await asyncio.wait({future}, timeout=timeout_s)
    if not done:
        future.cancel()
        return CallResult(error=TimeoutError(f"no answer within {timeout_s:g} s"))
    return future.result()


async def _finish(answer: Awaitable[Any]) -> CallResult:
    try:
        return CallResult(answer=await answer)
    except BaseException as error:
        return CallResult(error=error)


class LoopThread:
    """An event loop that runs in a daemon thread."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def submit(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        cancelled = self.submit(_cancel_all())
        try:
            cancelled.result(timeout=2.0)
        except TimeoutError:  # a scorer blocks this loop for good; the thread is a daemon and ends with the process
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=2.0)


async def _cancel_all() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
