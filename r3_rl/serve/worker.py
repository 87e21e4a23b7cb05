"""The thread that owns the model: it takes the rows that wait, and writes or draws together those that go together.

A request runs the loop in a thread of its own, with a policy whose `write` and `draw` put rows into the worker's queue
(`WorkerClient`). Rows are seeded one by one, so a row's answer does not depend on the rows next to it, up to the
rounding of sums in a batch. So the loop is the engine's own, and requests at different rounds share batches.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar, cast

import torch

from r3_rl.errors import InputError
from r3_rl.modalities import Context, ImageSegment, Segment, TextPiece, TextSegment
from r3_rl.policy.backbone import BackboneSpec
from r3_rl.policy.base import Drawing, Heard, Policy, Sampling
from r3_rl.web.refusals import Refusal

_LOG = logging.getLogger(__name__)
_Sample = TypeVar("_Sample", TextSegment, ImageSegment)


class Abandoned(Exception):
    """Nobody waits for this answer any more."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Row:
    """One text or image that is asked for."""

    client: WorkerClient
    how: Sampling | Drawing
    context: Context
    seed: int
    noise_seed: int
    heard: Heard | None = None
    """Who listens to the text while it is written."""
    made: Future[Any] = field(default_factory=Future)
    """The segment, or why there is none."""

    @cached_property
    def key(self) -> Hashable:
        """Rows of equal keys go into one call of the policy."""
        how = replace(self.how, sde_steps=()) if isinstance(self.how, Drawing) else self.how
        return self.client.base, how, any(not isinstance(piece, TextPiece) for piece in self.context)


class WorkerClient:
    """A request at the worker: a policy that writes and draws with the others, until the request is over.

    Args:
        worker: that is asked.
        base: whether the adapter is switched off for this request.
        follows: is told the stage and its first text as far as it is written, of every `write` that names no
            listeners.
    """

    def __init__(self, worker: ModelWorker, *, base: bool, follows: Callable[[str, str], None] | None = None) -> None:
        self._worker, self.base, self._follows = worker, base, follows
        self.cancelled = False

    @property
    def spec(self) -> BackboneSpec:
        """The model's."""
        return self._worker.policy.spec

    def write(
        self,
        contexts: Sequence[Context],
        sampling: Sampling,
        seeds: Sequence[int],
        heard: Sequence[Heard | None] | None = None,
    ) -> list[TextSegment]:
        """One text a context. Raises `Refusal`, InputError, or `Abandoned` once the request has been given up.

        A batch that fails is written again row by row, and whoever listens hears its text from the start.
        """
        if heard is None:
            heard = [None] * len(contexts)
            if self._follows is not None and contexts:
                heard[0] = partial(self._follows, sampling.task)
        rows = [
            _Row(client=self, how=sampling, context=context, seed=seed, noise_seed=seed, heard=hear)
            for context, seed, hear in zip(contexts, seeds, heard, strict=True)
        ]
        return self._ask(rows, TextSegment)

    def draw(
        self,
        contexts: Sequence[Context],
        drawings: Sequence[Drawing],
        seeds: Sequence[int],
        noise_seeds: Sequence[int] | None = None,
    ) -> list[ImageSegment]:
        """One image a context; errors as in `write`."""
        noise = seeds if noise_seeds is None else noise_seeds
        rows = [
            _Row(client=self, how=drawing, context=context, seed=seed, noise_seed=first)
            for context, drawing, seed, first in zip(contexts, drawings, seeds, noise, strict=True)
        ]
        return self._ask(rows, ImageSegment)

    def _ask(self, rows: Sequence[_Row], kind: type[_Sample]) -> list[_Sample]:
        self._worker.put(rows)
        made = [row.made.result() for row in rows]
        assert all(isinstance(each, kind) for each in made)
        return made

    def cancel(self) -> None:
        """Give the request up: what waits is dropped, and the next `write` or `draw` raises `Abandoned`."""
        self.cancelled = True
        self._worker.drop(self)

    def __enter__(self) -> WorkerClient:
        self._worker.clients_changed(self, connected=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._worker.clients_changed(self, connected=False)


class ModelWorker:
    """Runs a policy in a thread of its own, for many requests.

    Args:
        policy: with an adapter or without.
        adapted: whether it has one, which requests for the base switch off.
        max_batch: rows of one call at most.
        linger_s: seconds to wait for the other requests that are inside to ask for something, so that a batch that was
            answered together stays together.
    """

    def __init__(self, policy: Policy, *, adapted: bool, max_batch: int = 16, linger_s: float = 0.02) -> None:
        self.policy, self.max_batch = policy, max_batch
        self._adapted, self._linger_s = adapted, linger_s
        self._changed = threading.Condition()
        self._rows: list[_Row] = []
        self._clients: set[WorkerClient] = set()
        self._closing = False
        self.num_calls, self.num_rows = 0, 0
        """Calls of the policy so far, and rows in them: their quotient is the mean size of a batch."""
        self._thread = threading.Thread(target=self._run, name="r3-model", daemon=True)
        self._thread.start()

    def client(self, *, base: bool, follows: Callable[[str, str], None] | None = None) -> WorkerClient:
        """Return a place for a request; entering it tells the worker to expect rows from it."""
        return WorkerClient(self, base=base, follows=follows)

    def put(self, rows: Sequence[_Row]) -> None:
        """Queue rows of one client. Raises `Abandoned` if it was given up, `Refusal` if the worker is closing."""
        with self._changed:
            if self._closing:
                raise Refusal("the server is stopping", status=503, retry_after_s=10)
            if any(row.client.cancelled for row in rows):
                raise Abandoned
            self._rows += rows
            self._changed.notify_all()

    def drop(self, client: WorkerClient) -> None:
        """Forget the rows of a client that have not begun."""
        self._take_out(lambda row: row.client is client, Abandoned())

    def clients_changed(self, client: WorkerClient, *, connected: bool) -> None:
        """A request begins to ask, or has ended."""
        with self._changed:
            (self._clients.add if connected else self._clients.discard)(client)
            self._changed.notify_all()

    def close(self) -> None:
        """End after the call that is running; what waits is refused."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._take_out(lambda row: True, Refusal("the server is stopping", status=503, retry_after_s=10))
        self._thread.join()

    def _take_out(self, which: Callable[[_Row], bool], why: Exception) -> None:
        with self._changed:
            out = [row for row in self._rows if which(row)]
            self._rows = [row for row in self._rows if not which(row)]
        for row in out:
            row.made.set_exception(why)

    def _run(self) -> None:
        while (rows := self._next()) is not None:
            self.num_calls, self.num_rows = self.num_calls + 1, self.num_rows + len(rows)
            self._make(rows)

    def _next(self) -> list[_Row] | None:
        """The oldest row and those that go with it, once it is no use to wait for more; None at the end."""
        with self._changed:
            while not self._rows and not self._closing:
                self._changed.wait()
            until = time.monotonic() + self._linger_s
            while not self._closing and self._might_grow() and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            if self._closing:
                return None
            if not self._rows:  # dropped while we waited
                return []
            rows = self._first()
            taken = set(map(id, rows))
            self._rows = [row for row in self._rows if id(row) not in taken]
            return rows

    def _first(self) -> list[_Row]:
        key = self._rows[0].key
        return [row for row in self._rows if row.key == key][: self.max_batch]

    def _might_grow(self) -> bool:
        """Whether somebody who is inside has not asked yet, and there is room for more."""
        if not self._rows:
            return False
        return len(self._first()) < self.max_batch and not self._clients <= {row.client for row in self._rows}

    def _make(self, rows: Sequence[_Row]) -> None:
        """Write or draw the rows; where that fails they are made one at a time, so that one takes no other with it."""
        if not rows:
            return
        try:
            made = self._call(rows)
        except Exception as error:
            if len(rows) > 1:
                _LOG.warning("a batch of %d failed and is made one by one (%s)", len(rows), error)
                for row in rows:
                    self._make([row])
                return
            rows[0].made.set_exception(_said(error))
            return
        for row, segment in zip(rows, made, strict=True):
            row.made.set_result(segment)

    @torch.no_grad()
    def _call(self, rows: Sequence[_Row]) -> Sequence[Segment]:
        contexts, seeds = [row.context for row in rows], [row.seed for row in rows]
        switched = self.policy.reference() if rows[0].client.base and self._adapted else nullcontext()
        with switched:
            if isinstance(rows[0].how, Sampling):
                return self.policy.write(contexts, rows[0].how, seeds, [row.heard for row in rows])
            drawings = [cast(Drawing, row.how) for row in rows]  # rows of one key are all drawn
            return self.policy.draw(contexts, drawings, seeds, [row.noise_seed for row in rows])


def _said(error: Exception) -> Exception:
    """What the sender reads of a failure: mistakes of the input as they are, others without their details."""
    if isinstance(error, InputError):
        return error
    _LOG.error("the model failed on a request", exc_info=error)
    return Refusal("the model failed on this request; the server's log says why", status=500)
