"""Calling scorers so that none can hang the run: each call in a daemon thread or in one event loop, with a time limit.

Python cannot end a thread. A call that ran into its limit is left behind: its late answer is dropped, and the process may
exit while it still runs.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

_T = TypeVar("_T")


class CallTimeout(Exception):
    """A scorer took longer than its limit."""


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    answer: Any = None
    error: BaseException | None = None


class Caller:
    """Runs scorers: at most `num_workers` synchronous calls at once, and asynchronous ones in a loop of their own."""

    def __init__(self, num_workers: int) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, not {num_workers}")
        # Two loops: an async scorer that blocks its loop by mistake must not stop the clock that limits it.
        self._own = _LoopThread("r3-panel")
        self._scorers = _LoopThread("r3-async-scorers")
        self._slots = asyncio.Semaphore(num_workers)
        self._locks: dict[str, asyncio.Lock] = {}
        self._threads: dict[str, threading.Thread] = {}

    def submit(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Start a coroutine that uses `call`; the future holds its result."""
        return self._own.submit(work)

    async def call(
        self,
        name: str,
        scorer: Callable[..., Any],
        arguments: Mapping[str, Any],
        *,
        timeout_s: float,
        thread_safe: bool,
    ) -> Any:
        """Return the scorer's answer; raises what it raised, or `CallTimeout` after `timeout_s` seconds of running."""
        if thread_safe:
            return await self._call(name, scorer, arguments, timeout_s)
        async with self._locks.setdefault(name, asyncio.Lock()):
            if name in self._threads and self._threads[name].is_alive():
                raise CallTimeout("an earlier call that ran into its time limit is still running")
            return await self._call(name, scorer, arguments, timeout_s)

    async def _call(self, name: str, scorer: Callable[..., Any], arguments: Mapping[str, Any], timeout_s: float) -> Any:
        loop = asyncio.get_running_loop()
        async with self._slots:
            deadline = loop.time() + timeout_s
            answer = await _within(self._in_thread(name, scorer, arguments), deadline, timeout_s)
        if inspect.isawaitable(answer):  # what calling an `async def` gives, at once: it holds no slot while it waits
            running = asyncio.wrap_future(self._scorers.submit(_outcome_of(answer)))
            answer = await _within(running, deadline, timeout_s)
        return answer

    def _in_thread(
        self, name: str, scorer: Callable[..., Any], arguments: Mapping[str, Any]
    ) -> asyncio.Future[_Outcome]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Outcome] = loop.create_future()

        def settle(outcome: _Outcome) -> None:
            if not future.done():
                future.set_result(outcome)

        def work() -> None:
            try:
                outcome = _Outcome(answer=scorer(**arguments))
            except BaseException as error:  # a SystemExit in a thread would vanish without a word
                outcome = _Outcome(error=error)
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, outcome)

        thread = threading.Thread(target=work, name=f"r3-scorer-{name}", daemon=True)
        self._threads[name] = thread
        thread.start()
        return future

    def close(self) -> None:
        """Cancel what waits and end the loops; calls that still run are left behind."""
        self._own.close()
        self._scorers.close()


async def _within(future: asyncio.Future[_Outcome], deadline: float, timeout_s: float) -> Any:
    remaining = max(0.0, deadline - asyncio.get_running_loop().time())
    done, _ = await asyncio.wait({future}, timeout=remaining)
    if not done:
        future.cancel()
        raise CallTimeout(f"no answer within {timeout_s:g} s")
    outcome = future.result()
    if outcome.error is not None:
        raise outcome.error
    return outcome.answer


async def _outcome_of(answer: Awaitable[Any]) -> _Outcome:
    try:
        return _Outcome(answer=await answer)
    except Exception as error:
        return _Outcome(error=error)


class _LoopThread:
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
