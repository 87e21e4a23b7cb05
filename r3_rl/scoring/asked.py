"""One call of a scorer: what it gets, and what is made of its answer; the same in a thread and in its own process."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from r3_rl.errors import R3Error, one_line, said_by
from r3_rl.recipe.base import default
from r3_rl.recipe.learning import RewardSection
from r3_rl.scoring.answers import BrokenContract, check_answer, check_words
from r3_rl.scoring.base import ScorerInfo, accepted_arguments, call_parameters
from r3_rl.scoring.inputs import Inputs
from r3_rl.scoring.isolated import IsolatedScorer

MAX_WORDS = 2000
"""Letters of a reason that are kept."""
_MAX_CAUSE = 500
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
"""Half of a surrogate pair cannot be written to a file, and a terminal obeys control characters."""
_COPIES = "every scorer has copies of its own, so nothing else changes; let it copy what it changes"


@dataclass(frozen=True, kw_only=True)
class ScorerSpec:
    """A scorer and how it is asked."""

    name: str
    """What metrics and verdicts call it."""
    scorer: Any
    """Ready to be called, as `load_scorer` returns it."""
    weight: float = default(RewardSection, "weight")
    """Factor in the total, any sign; 0 means logged only."""
    info: ScorerInfo | None = None
    """None takes what the scorer declares."""
    params: Mapping[str, Any] | None = None
    """What it was built with: part of the cache key. None means unknown, and nothing of it is cached."""
    timeout_s: float = default(RewardSection, "timeout_s")
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
    seconds: float = 0.0
    error: BaseException | None = None
    remarks: Sequence[str] = ()
    """What the scorer should not have done although nothing came of it; worth one line in a run."""


class Asked:
    """A call before and after it runs: `call` runs it, `read` checks what came of it.

    Args:
        spec: the scorer.
        offered: keywords, of which it gets those that it takes; a sample's values have `count` entries.
        count: samples of the call.
        columns: names of the data set's columns, for the error.
        copy: False hands on what is offered, where nobody else reads it.

    Raises BrokenContract when the scorer demands a column that is not there.
    """

    def __init__(
        self, spec: ScorerSpec, offered: Mapping[str, Any], *, count: int, columns: Sequence[str], copy: bool = True
    ) -> None:
        logged: list[tuple[str, float]] = []
        self.logged, self._extras = logged, dict[str, Any]()
        hooks = {
            # not by `self`: in a circle with its images it would live until Python looks for circles, steps later
            "log_metric": lambda name, value: logged.append((str(name), float(value))),
            "log_extra": self._extras.__setitem__,
        }
        arguments = accepted_arguments(spec.scorer, {**offered, **hooks})
        require_arguments(spec.scorer, arguments, list(columns))
        self._scorer, self._count = spec.scorer, count
        self._hooks = {name: value for name, value in arguments.items() if name in hooks}
        self._copy = copy and not isinstance(spec.scorer, IsolatedScorer)  # which sends them to another process
        self._inputs = Inputs({name: value for name, value in arguments.items() if name not in hooks})

    def call(self) -> Any:
        """Call the scorer, with copies that are made now: there are no more of them than calls at once."""
        answer = self._scorer(**(self._inputs.give() if self._copy else self._inputs.originals), **self._hooks)
        # What gives its values one by one, such as `map` or a generator, is read while the call's time still runs.
        return list(islice(answer, self._count + 1)) if isinstance(answer, Iterator) else answer

    def remarks(self) -> list[str]:
        """Say which arguments the scorer wrote into."""
        return [f"writes into its argument '{name}'; {_COPIES}" for name in self._inputs.written()]

    def read(self, answer: Any, range: tuple[float, float] | None) -> Answered:
        """Check an answer against the declared range; raises BrokenContract for what no scorer may give."""
        try:
            return self._read(answer, range)
        except Exception as error:  # objects of the scorer's own run when they are looked at
            if isinstance(error, BrokenContract):
                raise
            raise BrokenContract(f"its answer cannot be read: {cause_of(error)}") from error

    def _read(self, answer: Any, range: tuple[float, float] | None) -> Answered:
        count = self._count
        checked = check_answer(answer, count=count, range=range)
        reasons = check_words("reason", self._extras.get("reason", [""] * count), count)
        causes = check_words("cause", self._extras.get("cause", [""] * count), count)
        return Answered(
            scores=checked.scores,
            words=[_cut(_UNPRINTABLE.sub("\ufffd", str(reason or "")), MAX_WORDS) for reason in reasons],
            causes={place: _line(str(causes[place] or cause)) for place, cause in checked.causes.items()},
            logged=self.logged,
        )


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
    """Say in one line of bounded length what a scorer raised."""
    if isinstance(error, R3Error):  # in words of our own
        return _line(str(error))
    text = _line(f"{type(error).__name__}: {said_by(error)}")
    if isinstance(error, TypeError) and "string indices" in text:
        text += " (a reward that reads messages declares `conversational=True` in its ScorerInfo)"
    if isinstance(error, ValueError) and "signal only works in main thread" in text:
        text += " (with `isolate: true` the scorer runs in the main thread of its own process)"
    if isinstance(error, ValueError) and "read-only" in text:
        text += " (a scorer gets its images read-only: let it change `image.copy()`)"
    return text


def _line(text: str) -> str:
    return _cut(one_line(text[: 4 * _MAX_CAUSE], 8 * _MAX_CAUSE), _MAX_CAUSE)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
