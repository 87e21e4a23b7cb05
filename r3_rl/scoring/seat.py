"""A seat on the panel: asks one scorer about a batch, with the cache before it and the checks behind it."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from r3_rl.errors import R3Error, ScorerError
from r3_rl.scoring.answers import BrokenContract, check_answer, check_words
from r3_rl.scoring.base import ScorerInfo, accepted_arguments, call_parameters, info_of
from r3_rl.scoring.batch import CallParts, ScoreBatch, applicable, call_parts
from r3_rl.scoring.cache import CachedScore, ScoreCache, content_key
from r3_rl.scoring.calls import Caller
from r3_rl.scoring.tally import RESERVED, Failure, Tally


@dataclass(frozen=True, kw_only=True)
class ScorerSpec:
    """A scorer's seat on the panel."""

    name: str
    """What metrics and verdicts call it."""
    scorer: Any
    """Ready to be called, as `load_scorer` returns it."""
    weight: float = 1.0
    """Factor in the total, any sign; 0 means logged only."""
    info: ScorerInfo | None = None
    """None takes what the scorer declares."""
    params: Mapping[str, Any] | None = None
    """What it was built with: part of the cache key. None means unknown, and nothing of it is cached."""
    timeout_s: float = 300.0
    """Seconds that one call may run."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """What one scorer said about a batch, one entry for each sample."""

    scores: list[float | None]
    words: list[str]
    applies: list[bool]
    """False where the sample lacks something that the scorer needs."""


class Seat:
    """One scorer, its declaration, and the tally of the step."""

    def __init__(self, spec: ScorerSpec, caller: Caller, cache: ScoreCache | None) -> None:
        self.spec = spec
        self.info: ScorerInfo = spec.info or info_of(spec.scorer)
        self.tally = Tally()
        self.warned = False
        self._caller = caller
        # Peers change the score of a group-wise scorer, so a single sample's content does not decide it.
        cacheable = self.info.deterministic and not self.info.group_wise and spec.params is not None
        self._cache = cache if cacheable else None
        self._identity = scorer_identity(spec, self.info) if cacheable else ""

    async def ask(self, batch: ScoreBatch, first: int, *, counted: bool = True) -> Column:
        """Score what applies of a batch; `first` is the position of its first sample within the step. What is not
        `counted` enters no metric."""
        tally = self.tally if counted else Tally()
        try:
            parts = call_parts(batch, self.info)
        except ValueError as error:
            raise ScorerError(str(error)) from error
        indices = applicable(batch, parts, self.info)
        applies = [False] * batch.count
        for index in indices:
            applies[index] = True
        column = Column(scores=[None] * batch.count, words=[""] * batch.count, applies=applies)
        keys = self._recall(parts, indices, column, tally)
        left = [index for index in indices if column.scores[index] is None]
        chunks = _by_group(left, batch, self.spec.name) if self.info.group_wise else [left]
        await asyncio.gather(*(self._call(batch, parts, chunk, first, column, tally) for chunk in chunks if chunk))
        if self._cache is not None:
            found = ((keys[i], column.scores[i], column.words[i]) for i in left if i in keys)
            self._cache.put({key: CachedScore(score=s, words=w) for key, s, w in found if s is not None})
        tally.scores += [score for score in column.scores if score is not None]
        return column

    def _recall(self, parts: CallParts, indices: list[int], column: Column, tally: Tally) -> dict[int, str]:
        """Fill in the scores that the cache holds; return the keys of the samples it lacks."""
        keys: dict[int, str] = {}
        if self._cache is None:
            return keys
        seen = accepted_arguments(self.spec.scorer, parts.samples)
        for index in indices:
            key = content_key(self._identity, {name: values[index] for name, values in seen.items()})
            cached = self._cache.get(key) if key else None
            if cached is not None:
                column.scores[index], column.words[index] = cached.score, cached.words
                tally.num_cached += 1
            elif key:
                keys[index] = key
        return keys

    async def _call(
        self, batch: ScoreBatch, parts: CallParts, chunk: list[int], first: int, column: Column, tally: Tally
    ) -> None:
        spec = self.spec
        logged: list[tuple[str, float]] = []
        extras: dict[str, Any] = {}
        offered: dict[str, Any] = {name: [values[i] for i in chunk] for name, values in parts.samples.items()}
        offered |= parts.constants
        offered["log_metric"] = lambda name, value: logged.append((name, float(value)))
        offered["log_extra"] = extras.__setitem__

        def failure(index: int, cause: str, error: BaseException | None = None) -> Failure:
            return Failure(position=first + index, prompt=batch.prompts[index].text, cause=cause, error=error)

        try:
            arguments = accepted_arguments(spec.scorer, offered)
            require_arguments(spec.scorer, arguments, sorted(batch.columns()))
            result = await self._caller.call(
                spec.name, spec.scorer, arguments, timeout_s=spec.timeout_s, thread_safe=self.info.thread_safe
            )
            tally.seconds += result.seconds
            if isinstance(result.error, BrokenContract):  # a remote scorer found the answer of its server to be wrong
                raise result.error
            if result.error is not None:
                for index in chunk:
                    tally.miss(failure(index, cause_of(result.error), result.error))
                return
            checked = check_answer(result.answer, count=len(chunk), range=self.info.range)
            reasons = check_words("reason", extras.get("reason", [""] * len(chunk)), len(chunk))
            causes = check_words("cause", extras.get("cause", [""] * len(chunk)), len(chunk))
            _log(tally, logged)
        except BrokenContract as broken:
            place = failure(chunk[broken.index or 0], broken.cause).place
            raise ScorerError(f"scorer '{spec.name}': {broken.cause}; first at {place}") from broken
        for local, index in enumerate(chunk):
            column.scores[index] = checked.scores[local]
            column.words[index] = str(reasons[local] or "")
            if local in checked.causes:
                tally.miss(failure(index, str(causes[local] or checked.causes[local])))


def scorer_identity(spec: ScorerSpec, info: ScorerInfo) -> str:
    """Say in one line what decides a score besides the sample: code, version, source file and parameters."""
    scorer = spec.scorer.func if isinstance(spec.scorer, partial) else spec.scorer
    kind = scorer if inspect.isroutine(scorer) else type(scorer)
    # Editing a scorer's file must not bring back the scores of the old one, whether or not `version` was changed.
    try:
        file = inspect.getsourcefile(kind)
    except TypeError:  # built into the interpreter
        file = None
    source = hashlib.sha256(_code(kind, file)).hexdigest() if file else ""
    params = json.dumps(spec.params, sort_keys=True, default=repr)
    return f"{kind.__module__}:{kind.__qualname__} {info.version} {source} {params}"


def _code(kind: Any, file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError:  # written in a notebook: the file is none, the lines are remembered
        return inspect.getsource(kind).encode()


def _by_group(indices: list[int], batch: ScoreBatch, name: str) -> list[list[int]]:
    if batch.groups is None:
        raise ScorerError(f"scorer '{name}' compares peers, and this batch does not say who they are",
                          hint="give ScoreBatch.groups")  # fmt: skip
    groups: dict[Hashable, list[int]] = {}
    for index in indices:
        groups.setdefault(batch.groups[index], []).append(index)
    return list(groups.values())


def require_arguments(scorer: Any, arguments: Mapping[str, Any], columns: list[str]) -> None:
    """Raise `BrokenContract` when the scorer demands a column that the data set lacks."""
    for name, parameter in call_parameters(scorer).items():
        optional = parameter.default is not inspect.Parameter.empty or parameter.kind in (
            inspect.Parameter.VAR_KEYWORD,
            inspect.Parameter.VAR_POSITIONAL,
        )
        if not optional and name not in arguments:
            known = ", ".join(columns) or "none"
            raise BrokenContract(f"it demands the column '{name}', which the data set lacks (it has: {known})")


def _log(tally: Tally, logged: list[tuple[str, float]]) -> None:
    for name, value in logged:
        if name in RESERVED:
            raise BrokenContract(f"log_metric({name!r}, ...) takes the name of a metric that every scorer has")
        tally.logged.setdefault(name, []).append(value)


def cause_of(error: BaseException) -> str:
    """Say in one line what a scorer raised."""
    if isinstance(error, R3Error):  # in words of our own
        return " ".join(str(error).split())
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, TypeError) and "string indices" in text:
        text += " (a reward that reads messages declares `conversational=True` in its ScorerInfo)"
    return text
