"""How many of TIIF-Bench's yes/no questions does a judge answer as the benchmark does?

Source: TIIF-Bench (arXiv 2506.02161), its columns `yn_question_list` and `yn_answer_list`. The words of the request are
our own, and the benchmark measures writing in pictures otherwise: figures compare only roughly with published ones.
Range: 0 to 1, right answers over questions asked. Weights: the judge's, under their licence. Memory: none here.
Cannot judge: what `vqa_questions` cannot; nearly all labels are "yes", so that a judge that always agrees scores high.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from r3_rl.rewards.vqa_questions import VqaQuestions
from r3_rl.scoring.judge_settings import JudgeSettings

QUESTIONS, ANSWERS = "yn_question_list", "yn_answer_list"


class Tiif:
    """`vqa_questions` with TIIF's columns and one line an answer, as TIIF asks for them."""

    info = replace(VqaQuestions.info, needs=("images", QUESTIONS, ANSWERS))

    def __init__(self, *, judge: JudgeSettings) -> None:
        self._asked = VqaQuestions(judge=judge, questions=QUESTIONS, answers=ANSWERS, form="lines")
        self.judge = self._asked.judge

    async def __call__(self, images: Sequence[Any], **columns: Any) -> list[float | None]:
        """Score images, uint8 [H, W, 3]."""
        return await self._asked(images, **columns)
