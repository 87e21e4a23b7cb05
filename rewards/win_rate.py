"""How many of its peers does a sample beat? Pairwise preference within a group, by any other scorer.

Source: the win rate that Pref-GRPO (arXiv 2508.20751) rewards instead of the score, so that a group whose scores lie
close together is told apart by order and not by the scorer's last digits. Range: 0 to 1. Weights, licence and memory:
those of the scorer that compares.
Cannot judge: how good the group is. Its mean is 0.5 for any policy, so log the scorer itself with weight 0 beside it.
Peers are needed: a sample without one has no score.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from r3_rl.errors import InputError
from r3_rl.scoring.answers import check_answer
from r3_rl.scoring.base import ScorerInfo, accepted_arguments, info_of
from r3_rl.scoring.registry import check_scorer, load_scorer


class WinRate:
    """score = (peers with a lower score + half of those with an equal one) / peers.

    Args:
        scorer: who compares: an installed name or `package.module:name`.
        params: its parameters.
        margin: scores closer than this are equal, 0 or more.

    A sample that the scorer gives no score has none here either and is no one's peer.

    >>> beats = WinRate(scorer="length", params={"max_words": 4, "soft_words": 4})
    >>> beats(completions=["one", "one two", "two one", "one two three"])
    [1.0, 0.5, 0.5, 0.0]
    """

    info = ScorerInfo(range=(0.0, 1.0), group_wise=True, weights_licence="the named scorer's")

    def __init__(self, scorer: str, params: dict[str, Any] | None = None, margin: float = 0.0) -> None:
        if margin < 0:
            raise InputError(f"margin must be 0 or more, not {margin}")
        self._scorer, self._margin = load_scorer(scorer, params), margin
        self._asked = info_of(self._scorer)
        self.info = replace(self._asked, range=(0.0, 1.0), group_wise=True)

    @staticmethod
    def check_params(params: Mapping[str, Any]) -> list[str]:
        """Return what is wrong with the scorer that compares."""
        return check_scorer(params["scorer"], params.get("params"))

    def __call__(self, **arguments: Any) -> Any:
        """Score one group; awaitable where the scorer that compares is asynchronous."""
        count = len(arguments["completions"])
        answer = self._scorer(**accepted_arguments(self._scorer, arguments))
        if inspect.isawaitable(answer):
            return self._later(answer, count)
        return self._compared(answer, count)

    async def _later(self, answer: Any, count: int) -> list[float | None]:
        return self._compared(await answer, count)

    def _compared(self, answer: Any, count: int) -> list[float | None]:
        scores = check_answer(answer, count=count, range=self._asked.range).scores
        return [self._wins(index, scores) for index in range(count)]

    def _wins(self, index: int, scores: tuple[float | None, ...]) -> float | None:
        mine = scores[index]
        others = [score for place, score in enumerate(scores) if place != index and score is not None]
        if mine is None or not others:
            return None
        points = [0.5 if abs(mine - other) <= self._margin else float(mine > other) for other in others]
        return sum(points) / len(points)
