"""How many of TIIF-Bench's yes/no questions does a judge answer as the benchmark does?

Source: TIIF-Bench (arXiv 2506.02161), its columns `yn_question_list` and `yn_answer_list`. The words of the request are
our own, and the benchmark measures writing in pictures otherwise: figures compare only roughly with published ones.
Range: 0 to 1, right answers over questions asked. Weights: the judge's, under their licence. Memory: none here.
Cannot judge: what `vqa_questions` cannot; nearly all labels are "yes", so that a judge that always agrees scores high.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from r3_rl.rewards.vqa_questions import VqaQuestions
from r3_rl.scoring.base import ScorerInfo
from r3_rl.scoring.judge_settings import JudgeSettings


class Tiif(VqaQuestions):
    """`vqa_questions` with TIIF's columns and one line an answer, as TIIF asks for them."""

    info = ScorerInfo(
        range=(0.0, 1.0),
        needs=("images", "yn_question_list", "yn_answer_list"),
        deterministic=True,
        weights_licence="the judge's",
        memory="none here",
        packages=("openai",),
        install="pip install 'r3-rl[judge]'",
    )

    def __init__(self, *, judge: JudgeSettings) -> None:
        super().__init__(judge=judge, questions="yn_question_list", answers="yn_answer_list", form="lines")

    @classmethod
    def info_for(cls, params: Mapping[str, Any]) -> ScorerInfo:
        """What it declares: its columns are TIIF's whatever the parameters."""
        return cls.info
