"""How many yes/no questions about the prompt does a judge answer as they should be answered?

Source: checking pictures by questions (TIFA, arXiv 2303.11897; DSG, arXiv 2310.18235); the words of the request are our
own. Range: 0 to 1, right answers over questions asked.
Weights: those of the model that the judge serves, under their licence. Memory: none here; the server's.
Cannot judge: what no question asks about. A judge errs, more so on counts, small things and text in pictures, and a
picture that contains writing can talk to it. Question lists that are all "yes" are won by whatever makes it agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from r3_rl.scoring.base import ScorerInfo
from r3_rl.scoring.judge_settings import JudgeSettings
from r3_rl.scoring.yes_no import as_label, ask_yes_no

TASK = "Look at the picture and answer each of these questions about it with yes or no."
_MOST_QUESTIONS = 64
_MOST_WORDS = 300


class VqaQuestions:
    """Scores the share of questions whose answer equals its label: score = right / asked.

    `questions` and `answers` name the columns with the questions of a sample and their labels (yes or no); with
    `answers: null` every label is yes. `form` is how the judge is to answer: `json` (a list) or `lines` (one a line).
    A sample whose reply does not hold one clear answer for each question has no score.
    """

    info = ScorerInfo(
        range=(0.0, 1.0),
        needs=("images", "questions", "answers"),
        deterministic=True,
        weights_licence="the judge's",
        memory="none here",
        packages=("openai",),
        install="pip install 'r3-rl[judge]'",
    )

    def __init__(
        self,
        *,
        judge: JudgeSettings,
        questions: str = "questions",
        answers: str | None = "answers",
        form: Literal["json", "lines"] = "json",
    ) -> None:
        from r3_rl.scoring.judge import Judge

        self.judge = Judge(judge)
        self._columns = (questions, answers)
        self._form: Literal["json", "lines"] = form
        self.info = self.info_for({"questions": questions, "answers": answers})

    @classmethod
    def info_for(cls, params: Mapping[str, Any]) -> ScorerInfo:
        """What it declares with these parameters, which name the columns."""
        columns = [params.get(name, name) for name in ("questions", "answers")]
        return replace(cls.info, needs=("images", *filter(None, columns)))

    async def __call__(
        self,
        images: Sequence[Any],
        *,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Score images, uint8 [H, W, 3]; the columns of questions and labels hold one list for each."""
        rows = [_Row(columns, *self._columns, index) for index in range(len(images))]
        whole = [index for index, row in enumerate(rows) if not row.cause]
        replies = await ask_yes_no(
            self.judge,
            [images[index] for index in whole],
            [rows[index].questions for index in whole],
            task=TASK,
            form=self._form,
            log_metric=log_metric,
        )
        scores: list[float | None] = [None] * len(rows)
        for index, reply in zip(whole, replies, strict=True):
            rows[index].cause = reply.cause
            if reply.said is not None:
                scores[index] = rows[index].grade(reply.said)
        if log_extra is not None:
            log_extra("reason", [row.words for row in rows])
            log_extra("cause", [row.cause for row in rows])
        return scores


class _Row:
    """The questions of one sample, and what is to be said about them."""

    def __init__(self, columns: Mapping[str, Any], questions: str, answers: str | None, index: int) -> None:
        self.questions: list[str] = list(columns[questions][index])
        given = columns[answers][index] if answers else ["yes"] * len(self.questions)
        self._labels = [as_label(label) for label in given]
        self.words = self.cause = ""
        if not self.questions:
            self.cause = f"the column '{questions}' holds no question"
        elif len(self.questions) > _MOST_QUESTIONS:
            most = f"{len(self.questions)} questions; at most {_MOST_QUESTIONS} are asked"
            self.cause = f"the column '{questions}' holds {most}"
        elif len(self._labels) != len(self.questions):
            self.cause = f"{len(self._labels)} labels in '{answers}' for {len(self.questions)} in '{questions}'"
        elif None in self._labels:
            self.cause = f"'{answers}' holds {given[self._labels.index(None)]!r}, which is neither yes nor no"

    def grade(self, said: Sequence[bool]) -> float:
        """Return right answers over questions asked, and keep the wrong ones for the report."""
        judged = zip(self.questions, said, self._labels, strict=True)
        wrong = [f"{' '.join(text.split())} ({'yes' if answer else 'no'})" for text, answer, label in judged
                 if answer != label]  # fmt: skip
        self.words = "; ".join(wrong)[:_MOST_WORDS]
        return 1 - len(wrong) / len(self.questions)
