"""How a scorer is asked, on a panel and behind a server alike: the cache before the call and the checks after it."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from r3_rl.scoring.answers import BrokenContract
from r3_rl.scoring.asked import Answered, Asked, ScorerSpec
from r3_rl.scoring.base import ScorerInfo, accepted_arguments, call_parameters
from r3_rl.scoring.cache import CachedScore, ScoreCache, content_key
from r3_rl.scoring.calls import Caller, CallResult

Run = Callable[[Coroutine[Any, Any, CallResult]], Awaitable[CallResult]]


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
    asked = Asked(spec, offered, count=count, columns=sorted(columns))
    call = caller.call(spec.name, asked.call, timeout_s=spec.timeout_s, thread_safe=info.thread_safe)
    result = await (run(call) if run else call)
    remarks = [*result.remarks, *asked.remarks()]
    if isinstance(result.error, BrokenContract):  # a remote scorer found the answer of its server to be wrong
        raise result.error
    if result.error is not None:
        return Answered(causes={}, seconds=result.seconds, error=result.error, remarks=remarks)
    return replace(asked.read(result.answer, info.range), seconds=result.seconds, remarks=remarks)


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """What a scorer's memory says of some samples, by their number."""

    known: dict[int, CachedScore]
    """Scored before."""
    keys: dict[int, str]
    """Under which a new score is kept."""
    twins: dict[int, int]
    """Equal to an earlier sample of the same call, which is the one to be scored."""


class Memory:
    """The cache of one scorer; without one nothing is found and nothing is kept."""

    def __init__(self, cache: ScoreCache | None, spec: ScorerSpec, info: ScorerInfo) -> None:
        # Peers change the score of a group-wise scorer, and the step that of one which looks at it: a single sample's
        # content does not decide it.
        by_content = not info.group_wise and "trainer_state" not in call_parameters(spec.scorer)
        self._cache = cache if info.deterministic and by_content else None
        self._spec = spec
        self._identity = scorer_identity(spec, info) if self._cache is not None else ""

    @property
    def in_use(self) -> bool:
        """Whether scores are kept."""
        return self._cache is not None

    def give_up(self) -> None:
        """Keep nothing from now on: the scorer does not give the same score again."""
        self._cache = None

    def recall(self, samples: Mapping[str, Sequence[Any]], indices: Sequence[int]) -> Recalled:
        """Look samples up: what is known of them, and which are equal to an earlier one."""
        found = Recalled(known={}, keys={}, twins={})
        if self._cache is None:
            return found
        seen = accepted_arguments(self._spec.scorer, samples)
        first: dict[str, int] = {}
        hashed: dict[int, bytes] = {}
        for index in indices:
            key = content_key(self._identity, {name: values[index] for name, values in seen.items()}, hashed)
            cached = self._cache.get(key) if key else None
            if cached is not None:
                found.known[index] = cached
            elif key in first:
                found.twins[index] = first[key]
            elif key:
                found.keys[index] = key
                first[key] = index
        return found

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
