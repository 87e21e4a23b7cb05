"""A seat on the panel: asks one scorer about a batch, with the cache before it and the checks behind it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from r3_rl.errors import ScorerError, one_line
from r3_rl.scoring.answers import LARGEST, BrokenContract
from r3_rl.scoring.asked import ScorerSpec, cause_of
from r3_rl.scoring.asking import Memory, ask_scorer
from r3_rl.scoring.base import RunProgress, ScorerInfo, info_of
from r3_rl.scoring.batch import CallParts, ScoreBatch, applicable, call_parts
from r3_rl.scoring.cache import ScoreCache
from r3_rl.scoring.calls import Caller
from r3_rl.scoring.tally import RESERVED, Failure, Tally

_LOG = logging.getLogger(__name__)
_MAX_LOGGED = 100
_MAX_NAME = 80
_NEAR = 0.01
"""How far two scores of one sample may be apart: a model rounds otherwise alone than in a batch."""


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
        self._said: set[str] = set()
        self._first: tuple[ScoreBatch, int, float] | None = None
        """The first sample that was scored, and its score, until `prove` has asked again."""
        self._proven = False
        self._caller = caller
        self._memory = Memory(cache if spec.params is not None else None, spec, self.info)

    def warn_once(self, kind: str, message: str) -> None:
        """Say a line that is worth saying once in a run; further ones of its kind are left out."""
        if kind not in self._said:
            self._said.add(kind)
            _LOG.warning(message)

    async def ask(self, batch: ScoreBatch, first: int, state: RunProgress, *, counted: bool = True) -> Column:
        """Score what applies of a batch; `first` is the position of its first sample within the step. What is not
        `counted` enters no metric."""
        tally = self.tally if counted else Tally()
        try:
            parts = call_parts(batch, self.info, state)
        except ValueError as error:
            raise ScorerError(str(error)) from error
        indices = applicable(batch, parts, self.info)
        applies = [False] * batch.count
        for index in indices:
            applies[index] = True
        column = Column(scores=[None] * batch.count, words=[""] * batch.count, applies=applies)
        found = self._memory.recall(parts.samples, indices)
        for index, cached in found.known.items():
            column.scores[index], column.words[index] = cached.score, cached.words
        left = [index for index in indices if index not in found.known and index not in found.twins]
        chunks = _by_group(left, batch, self.spec.name) if self.info.group_wise else [left]
        causes: dict[int, _Cause] = {}
        await asyncio.gather(
            *(self._call(batch, parts, chunk, first, column, causes, tally) for chunk in chunks if chunk)
        )
        self._memory.keep(found.keys, column.scores, column.words)
        if self._memory.in_use and not self._proven and self._first is None:
            scored = ((index, column.scores[index]) for index in left)
            self._first = next(((batch, index, score) for index, score in scored if score is not None), None)
        for index, twin in found.twins.items():
            column.scores[index], column.words[index] = column.scores[twin], column.words[twin]
            if twin in causes:
                causes[index] = causes[twin]
        for index, score in enumerate(column.scores):
            if score is not None and not abs(self.spec.weight * score) <= LARGEST:
                column.scores[index] = None
                causes[index] = _Cause(f"weight {self.spec.weight:g} x score {score:g} is too large a share of a total")
        for index, cause in causes.items():
            tally.miss(_failure(batch, first, index, cause))
        tally.num_cached += len(found.known) + sum(index not in causes for index in found.twins)
        tally.scores += [score for score in column.scores if score is not None]
        return column

    async def prove(self, state: RunProgress) -> None:
        """Ask a scorer that calls itself deterministic once more about its first sample; of one that gives another
        score, equal samples no longer share one. Does nothing the second time."""
        if self._first is None:
            return
        (batch, index, score), self._first, self._proven = self._first, None, True
        column = Column(scores=[None] * batch.count, words=[""] * batch.count, applies=[])
        await self._call(batch, call_parts(batch, self.info, state), [index], 0, column, {}, Tally())
        again = column.scores[index]
        if again is not None and abs(again - score) > _NEAR * max(1.0, abs(score)):
            self._memory.give_up()
            self.warn_once(
                "deterministic",
                f"scorer '{self.spec.name}' declares deterministic=True and gave {score:.4g} and {again:.4g} for one "
                "sample; its scores are not kept: leave the declaration out, or give it a seed of its own",
            )

    async def _call(
        self,
        batch: ScoreBatch,
        parts: CallParts,
        chunk: list[int],
        first: int,
        column: Column,
        causes: dict[int, _Cause],
        tally: Tally,
    ) -> None:
        spec = self.spec
        offered: dict[str, Any] = {name: [values[i] for i in chunk] for name, values in parts.samples.items()}
        offered |= parts.constants
        try:
            answered = await ask_scorer(
                self._caller, spec, self.info, offered, count=len(chunk), columns=list(batch.columns())
            )
            tally.seconds += answered.seconds
            for remark in answered.remarks:
                self.warn_once(remark, f"scorer '{spec.name}' {remark}")
            if answered.error is not None:
                causes.update(dict.fromkeys(chunk, _Cause(cause_of(answered.error), answered.error)))
                return
            _log(tally, answered.logged)
        except BrokenContract as broken:
            place = _failure(batch, first, chunk[broken.index or 0], _Cause(broken.cause)).place
            raise ScorerError(f"scorer '{spec.name}': {broken.cause}; first at {place}") from broken
        for local, index in enumerate(chunk):
            column.scores[index], column.words[index] = answered.scores[local], answered.words[local]
            if local in answered.causes:
                causes[index] = _Cause(answered.causes[local])


@dataclass(frozen=True)
class _Cause:
    """Why a sample has no score."""

    words: str
    error: BaseException | None = None


def _failure(batch: ScoreBatch, first: int, index: int, cause: _Cause) -> Failure:
    return Failure(position=first + index, prompt=batch.prompts[index].text, cause=cause.words, error=cause.error)


def _by_group(indices: list[int], batch: ScoreBatch, name: str) -> list[list[int]]:
    if batch.groups is None:
        raise ScorerError(f"scorer '{name}' compares peers, and this batch does not say who they are",
                          hint="give ScoreBatch.groups")  # fmt: skip
    groups: dict[Hashable, list[int]] = {}
    for index in indices:
        groups.setdefault(batch.groups[index], []).append(index)
    return list(groups.values())


def _log(tally: Tally, logged: Sequence[tuple[str, float]]) -> None:
    for name, value in logged:
        if name not in tally.logged and len(tally.logged) == _MAX_LOGGED:
            raise BrokenContract(f"log_metric gives more than {_MAX_LOGGED} different names; each becomes a curve")
        if not name.isprintable() or len(name) > _MAX_NAME:
            shown = one_line(name, 40)
            raise BrokenContract(f"log_metric({shown!r}, ...): a name has at most {_MAX_NAME} printable letters")
        if name in RESERVED:
            raise BrokenContract(f"log_metric({name!r}, ...) takes the name of a metric that every scorer has")
        tally.logged.setdefault(name, []).append(value)


__all__ = ["Column", "ScorerSpec", "Seat"]
