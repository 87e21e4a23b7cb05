"""Does a picture show what DPG-Bench asks about it, each question only if what it builds on is there?

Source: DPG-Bench (ELLA, arXiv 2403.05135): a question counts only if its parents are answered yes, as in DSG (arXiv
2310.18235). The words of the request are our own, and the benchmark asks mPLUG-large one question at a time: figures
compare with each other, and only roughly with published ones. Range: 0 to 1, questions that count over questions asked.
Weights: the judge's, under their licence. Memory: none here.
Cannot judge: what no question asks about; every right answer is yes, so that a judge that always agrees scores high.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from r3_rl.rewards.vqa_questions import TASK, VqaQuestions
from r3_rl.scoring.judge_settings import JudgeSettings
from r3_rl.scoring.yes_no import ask_yes_no


class Dpg:
    """Scores the share of questions that are answered yes and whose parents all count.

    `questions` holds the questions of a sample, `parents` for each the places of earlier ones that it builds on.
    """

    info = replace(VqaQuestions.info, needs=("images", "questions", "parents"))

    def __init__(self, *, judge: JudgeSettings) -> None:
        from r3_rl.scoring.judge import Judge

        self.judge = Judge(judge)

    async def __call__(
        self,
        images: Sequence[Any],
        questions: Sequence[Sequence[str]],
        parents: Sequence[Sequence[Sequence[int]]],
        *,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
    ) -> list[float | None]:
        """Score images, uint8 [H, W, 3]."""
        replies = await ask_yes_no(self.judge, images, questions, task=TASK, form="json", log_metric=log_metric)
        scores: list[float | None] = []
        reasons: list[str] = []
        for reply, texts, below in zip(replies, questions, parents, strict=True):
            counted = None if reply.said is None else counts(reply.said, below)
            scores.append(None if counted is None else sum(counted) / len(counted))
            failed = [text for text, holds in zip(texts, counted or [True] * len(texts), strict=True) if not holds]
            reasons.append("; ".join(failed)[:300])
        if log_extra is not None:
            log_extra("reason", reasons)
            log_extra("cause", [reply.cause for reply in replies])
        return scores


def counts(said: Sequence[bool], parents: Sequence[Sequence[int]]) -> list[bool]:
    """Return which questions count: answered yes, and so are all that they build on.

    >>> counts([True, False, True, True], [[], [], [1], [0]])
    [True, False, False, True]
    """
    found: list[bool] = []
    for answer, below in zip(said, parents, strict=True):
        found.append(answer and all(found[place] for place in below))
    return found
