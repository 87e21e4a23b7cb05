"""How a scorer is asked, on a panel and behind a server alike: the cache before the call and the checks after it."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from r3_rl.errors import R3Error
from r3_rl.scoring.answers import BrokenContract, check_answer, check_words
from r3_rl.scoring.base import ScorerInfo, accepted_arguments, call_parameters
from r3_rl.scoring.cache import CachedScore, ScoreCache, content_key
from r3_rl.scoring.calls import Caller, CallResult
from r3_rl.scoring.inputs import Inputs

Run = Callable[[Coroutine[Any, Any, CallResult]], Awaitable[CallResult]]


@dataclass(frozen=True, kw_only=True)
class ScorerSpec:
    """A scorer and how it is asked."""

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
class Answered:
    """What a call gave, one entry for each of its samples; nothing but the error if it raised one."""

    scores: Sequence[float | None] = ()
    words: Sequence[str] = ()
    causes: Mapping[int, str]
    """Why a score is None, by its place."""
    logged: Sequence[tuple[str, float]] = ()
    """What it gave to `log_metric`."""
    seconds: float
    error: BaseException | None = None
    remarks: Sequence[str] = ()
    """What the scorer should not have done although nothing came of it; worth one line in a run."""


_COPIES = "every scorer has copies of its own, so nothing else changes; let it copy what it changes"


async def ask_scorer(
    caller: Caller,
    spec: ScorerSpec,
    info: ScorerInfo,
    offered: Mapping[str, Any],
    *,
    count: int,
    columns: Sequence[str],
    run: Run | None = None,
) -> Answered:
    """Call a scorer and check what it answers.

    Args:
        caller: who runs it.
        spec, info: the scorer.
        offered: keywords, of which it gets those that it takes; a sample's values have `count` entries.
        count: samples of the call.
        columns: names of the data set's columns, for the error.
        run: how the call is waited for; by default on the loop that asks.

    Raises:
        BrokenContract: a column that it demands is not there, or its answer is none that a scorer may give.
    """
    logged: list[tuple[str, float]] = []
    extras: dict[str, Any] = {}
    hooks = {
        "log_metric": lambda name, value: logged.append((str(name), float(value))),
        "log_extra": extras.__setitem__,
    }
    arguments = accepted_arguments(spec.scorer, {**offered, **hooks})
    require_arguments(spec.scorer, arguments, sorted(columns))
    given = {name: value for name, value in arguments.items() if name in hooks}
    inputs = Inputs({name: value for name, value in arguments.items() if name not in hooks})
    call = caller.call(
        spec.name,
        lambda: spec.scorer(**inputs.give(), **given),  # copied where it runs: no more copies than calls at once
        timeout_s=spec.timeout_s,
        thread_safe=info.thread_safe,
    )
    result = await (run(call) if run else call)
    remarks = [f"writes into its argument '{name}'; {_COPIES}" for name in inputs.written()]
    if isinstance(result.error, BrokenContract):  # a remote scorer found the answer of its server to be wrong
        raise result.error
    if result.error is not None:
        return Answered(causes={}, seconds=result.seconds, error=result.error, remarks=remarks)
    checked = check_answer(result.answer, count=count, range=info.range)
    reasons = check_words("reason", extras.get("reason", [""] * count), count)
    causes = check_words("cause", extras.get("cause", [""] * count), count)
    return Answered(
        scores=checked.scores,
        words=[str(reason or "") for reason in reasons],
        causes={place: str(causes[place] or cause) for place, cause in checked.causes.items()},
        logged=logged,
        seconds=result.seconds,
        remarks=remarks,
    )


class Memory:
    """The cache of one scorer; without one nothing is found and nothing is kept."""

    def __init__(self, cache: ScoreCache | None, spec: ScorerSpec, info: ScorerInfo) -> None:
        # Peers change the score of a group-wise scorer, so a single sample's content does not decide it.
        self._cache = cache if info.deterministic and not info.group_wise else None
        self._spec = spec
        self._identity = scorer_identity(spec, info) if self._cache is not None else ""

    def recall(
        self, samples: Mapping[str, Sequence[Any]], indices: Sequence[int]
    ) -> tuple[dict[int, CachedScore], dict[int, str]]:
        """Scores that are known, by sample, and the keys of the samples that are not."""
        known: dict[int, CachedScore] = {}
        keys: dict[int, str] = {}
        if self._cache is None:
            return known, keys
        seen = accepted_arguments(self._spec.scorer, samples)
        for index in indices:
            key = content_key(self._identity, {name: values[index] for name, values in seen.items()})
            cached = self._cache.get(key) if key else None
            if cached is not None:
                known[index] = cached
            elif key:
                keys[index] = key
        return known, keys

    def keep(self, keys: Mapping[int, str], scores: Sequence[float | None], words: Sequence[str]) -> None:
        """Keep new scores under the keys that `recall` gave; a missing score is not kept."""
        if self._cache is not None:
            found = ((key, scores[index], words[index]) for index, key in keys.items())
            self._cache.put({key: CachedScore(score=s, words=w) for key, s, w in found if s is not None})


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


def cause_of(error: BaseException) -> str:
    """Say in one line what a scorer raised."""
    if isinstance(error, R3Error):  # in words of our own
        return " ".join(str(error).split())
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, TypeError) and "string indices" in text:
        text += " (a reward that reads messages declares `conversational=True` in its ScorerInfo)"
    if isinstance(error, ValueError) and "read-only" in text:
        text += " (a scorer gets its images read-only: let it change `image.copy()`)"
    return text
