"""A scorer behind a server: samples from the wire become a call, and the call an `Answer` for each of them.

One bad sample does not take the others with it: a damaged image is left out, and after a failed call the samples are
scored one at a time. What a sender reads of a failure is its kind and its message; stack traces stay here.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from r3_rl.errors import DataError
from r3_rl.scoring.answers import BrokenContract
from r3_rl.scoring.asked import MAX_WORDS, ScorerSpec, cause_of
from r3_rl.scoring.asking import Memory, ask_scorer, scorer_identity
from r3_rl.scoring.base import RunProgress, call_parameters, info_of
from r3_rl.scoring.cache import ScoreCache
from r3_rl.scoring.calls import Caller
from r3_rl.scoring.png import decode_png
from r3_rl.scoring.wire import IMAGE_ARGUMENTS, Answer, Limits, Request, ScorerCard, WireError
from r3_rl.types import STANDARD_ARGUMENTS

_LOG = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _Sheet:
    """An answer while it is filled in."""

    scores: list[float | None]
    reasons: list[str]
    causes: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def fail(self, indices: Sequence[int], cause: str) -> None:
        self.causes.update({str(index): cause[:MAX_WORDS] for index in indices})


class ServedScorer:
    """Scores requests with one scorer.

    `spec` holds the scorer and its parameters; `caller` runs it. At most `num_ahead` requests are unpacked at a time:
    images are decoded while others are scored, and memory stays bounded.
    """

    def __init__(self, spec: ScorerSpec, caller: Caller, limits: Limits, *, num_ahead: int = 2) -> None:
        self.spec = spec
        self.info = spec.info or info_of(spec.scorer)
        self._caller = caller
        self._limits = limits
        self._turns = asyncio.Semaphore(num_ahead)
        self._said: set[str] = set()
        self._takes = _takes(spec.scorer, self.info.needs)
        self._fingerprint = hashlib.sha256(scorer_identity(spec, self.info).encode()).hexdigest()[:16]
        self._memory = Memory(ScoreCache(), spec, self.info)

    def card(self) -> ScorerCard:
        """What `/info` says about it."""
        info = self.info
        return ScorerCard(
            name=self.spec.name,
            version=info.version,
            fingerprint=self._fingerprint,
            range=info.range,
            needs=info.needs,
            takes=self._takes,
            deterministic=info.deterministic,
            thread_safe=info.thread_safe,
            group_wise=info.group_wise,
            conversational=info.conversational,
            weights_licence=info.weights_licence,
            memory=info.memory,
        )

    async def score(self, request: Request) -> Answer:
        """Score the samples of a request; an answer against the contract becomes its `fault`."""
        count = len(request.samples)
        sheet = _Sheet(scores=[None] * count, reasons=[""] * count)
        async with self._turns:
            columns, broken = await asyncio.to_thread(_columns, request, self._limits, self._takes)
            for index, cause in broken.items():
                sheet.fail([index], cause)
            try:
                await self._fill(columns, sheet, count)
            except BrokenContract as fault:
                _LOG.warning("scorer '%s': %s", self.spec.name, fault.cause)
                return Answer(fingerprint=self._fingerprint, scores=[], fault=fault.cause[:MAX_WORDS])
        return Answer(
            fingerprint=self._fingerprint,
            scores=sheet.scores,
            reasons=sheet.reasons,
            causes=sheet.causes,
            metrics=sheet.metrics,
        )

    async def _fill(self, columns: Mapping[str, Sequence[Any]], sheet: _Sheet, count: int) -> None:
        whole = [index for index in range(count) if str(index) not in sheet.causes]
        if self.info.group_wise and len(whole) < count:
            sheet.fail(whole, "a peer of this sample has no image that can be read")
            return
        for index in whole:
            absent = [name for name in self.info.needs if name not in columns or columns[name][index] is None]
            if absent:
                sheet.fail([index], f"the sample lacks {', '.join(absent)}")
        left = [index for index in whole if str(index) not in sheet.causes]
        found = await asyncio.to_thread(self._memory.recall, columns, left)  # it reads every pixel
        for index, cached in found.known.items():
            sheet.scores[index], sheet.reasons[index] = cached.score, cached.words
        left = [index for index in left if index not in found.known and index not in found.twins]
        if left:
            await self._call(columns, left, sheet)
        self._memory.keep(found.keys, sheet.scores, sheet.reasons)
        for index, twin in found.twins.items():
            sheet.scores[index], sheet.reasons[index] = sheet.scores[twin], sheet.reasons[twin]
            if str(twin) in sheet.causes:
                sheet.fail([index], sheet.causes[str(twin)])

    async def _call(self, columns: Mapping[str, Sequence[Any]], indices: Sequence[int], sheet: _Sheet) -> None:
        start = time.monotonic()
        error = await self._once(columns, indices, sheet)
        if error is None:
            return
        _LOG.warning("scorer '%s' failed on %d samples", self.spec.name, len(indices), exc_info=error)
        alone = len(indices) > 1 and not self.info.group_wise and not isinstance(error, TimeoutError)
        if not alone:
            sheet.fail(indices, cause_of(error))
            return
        for index in indices:
            spent = time.monotonic() - start > self.spec.timeout_s
            single = error if spent else await self._once(columns, [index], sheet)
            if single is not None:
                sheet.fail([index], cause_of(single))

    async def _once(
        self, columns: Mapping[str, Sequence[Any]], indices: Sequence[int], sheet: _Sheet
    ) -> BaseException | None:
        """Call the scorer on some of the samples; what it raised is returned, what it answered is filled in."""
        offered: dict[str, Any] = {**dict.fromkeys(STANDARD_ARGUMENTS), "trainer_state": RunProgress()}
        offered |= {name: [values[index] for index in indices] for name, values in columns.items()}
        answered = await ask_scorer(
            self._caller,
            self.spec,
            self.info,
            offered,
            count=len(indices),
            columns=list(set(columns) - set(STANDARD_ARGUMENTS)),
            run=lambda call: asyncio.wrap_future(self._caller.submit(call)),
        )
        for remark in answered.remarks:
            if remark not in self._said:
                self._said.add(remark)
                _LOG.warning("scorer '%s' %s", self.spec.name, remark)
        if answered.error is not None:
            return answered.error
        for local, index in enumerate(indices):
            sheet.scores[index] = answered.scores[local]
            sheet.reasons[index] = answered.words[local]
            if local in answered.causes:
                sheet.fail([index], answered.causes[local])
        for name, value in answered.logged:
            sheet.metrics.setdefault(name, []).append(value)
        return None


def _columns(
    request: Request, limits: Limits, takes: Sequence[str] | None
) -> tuple[dict[str, list[Any]], dict[int, str]]:
    """Lay samples out as a scorer's keywords; the second value says which samples have an image that cannot be read.

    Names that it does not take are left out, so a request costs no more columns than the scorer has (or `Limits.keys`
    where it takes all).
    """
    images: dict[int, Any] = {}
    files: dict[bytes, Any] = {}  # equal files are unpacked once
    damaged: dict[int, str] = {}
    broken: dict[int, str] = {}
    for index, sample in enumerate(request.samples):
        for name in IMAGE_ARGUMENTS:
            number = sample.get(name)
            if number is None:
                continue
            if number not in images and number not in damaged:
                file = hashlib.sha256(request.images[number]).digest()
                try:
                    if file not in files:
                        files[file] = decode_png(request.images[number], max_pixels=limits.image_pixels)
                    images[number] = files[file]
                except DataError as error:
                    damaged[number] = str(error)
            if number in damaged:
                broken.setdefault(index, f"{name}: {damaged[number]}")
    names = dict.fromkeys(name for sample in request.samples for name in sample if takes is None or name in takes)
    names.pop("trainer_state", None)  # not a sample's
    if takes is None and len(names) > limits.keys:
        raise WireError(f"{len(names)} different columns in a request; at most {limits.keys} are taken", status=413)
    columns = {name: [sample.get(name) for sample in request.samples] for name in names}
    for name in IMAGE_ARGUMENTS:
        if name in columns:
            columns[name] = [None if number is None else images.get(number) for number in columns[name]]
    return columns, broken


def _takes(scorer: Any, needs: Sequence[str]) -> tuple[str, ...] | None:
    parameters = call_parameters(scorer)
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    bound = scorer.keywords if isinstance(scorer, partial) else {}
    return tuple(dict.fromkeys([*(name for name in parameters if name not in bound), *needs]))
