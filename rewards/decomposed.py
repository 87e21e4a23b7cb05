"""How likely is a vision-language model to say yes to each small question about a prompt, on average?

Source: questions about one thing at a time (TIFA, arXiv 2303.11897; DSG, arXiv 2310.18235) and the probability of yes
(VQAScore, arXiv 2404.01291) instead of a verdict. Range: 0 to 1.
Weights and memory: those of `p_yes`; the writer of questions, where there is one, is served.
Cannot judge: what no question asks about; an average forgives one thing that is missing among many that are there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from r3_rl.rewards.yes_sources import Asked, Dtype, LogMetric, source_problems, with_packages, yes_source
from r3_rl.scoring.base import ScorerInfo
from r3_rl.scoring.judge_settings import JudgeSettings
from r3_rl.scoring.replies import read_json, shown

_ENDING = " Answer with yes or no only."
_MOST_QUESTIONS = 30
_WRITING = """A picture is meant to show this: "{prompt}"
Split that into the smallest questions that can be answered by looking at the picture: one for each thing, each count, \
each colour or other property, each action, and each relation between two things. A right picture gets a yes to every \
one of them. Reply with a JSON list of questions and nothing else."""


class Decomposed:
    """Scores the mean probability of yes over the questions of a prompt: score = sum P(yes | question) / questions.

    The questions, all with the answer yes, stand in the data set's column `questions`, one list for each sample; or,
    with `writer`, a served text model writes them once for each prompt. The other parameters are those of `p_yes`. A
    sample with one question that the model does not answer has no score.
    """

    info = ScorerInfo(
        range=(0.0, 1.0),
        needs=("images",),
        version="2",  # quotes and marks around yes and no are left out
        deterministic=True,
        weights_licence="the named model's",
        memory="2 bytes a parameter, or none here with a judge",
    )

    def __init__(
        self,
        *,
        judge: JudgeSettings | None = None,
        model: str | None = None,
        revision: str | None = None,
        device: str | None = None,
        dtype: Dtype = "bfloat16",
        questions: str = "questions",
        writer: JudgeSettings | None = None,
        least_mass: float = 0.5,
    ) -> None:
        self.source = yes_source(
            judge=judge, model=model, revision=revision, device=device, dtype=dtype, least_mass=least_mass
        )
        self.writer = None if writer is None else _Writer(writer)
        self._column = questions
        self.info = self.info_for({"model": model, "questions": questions, "writer": writer})

    @classmethod
    def info_for(cls, params: Mapping[str, Any]) -> ScorerInfo:
        """What it declares with these parameters: a writer takes the place of the column, and is served."""
        info = with_packages(cls.info, params, served=params.get("writer") is not None)
        column = params.get("questions", "questions")
        return info if params.get("writer") is not None else replace(info, needs=("images", column))

    @staticmethod
    def check_params(params: dict[str, Any]) -> list[str]:
        """Return what is wrong with the parameters together, one line each."""
        return source_problems(params)

    async def __call__(
        self,
        prompts: Sequence[str],
        images: Sequence[Any],
        *,
        log_metric: LogMetric | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Score images, uint8 [H, W, 3], by the questions of their prompts."""
        causes = [""] * len(prompts)
        if self.writer is not None:
            questions, causes = await self.writer.questions(prompts)
        else:
            questions = [list(row) for row in columns[self._column]]
            causes = [self._cause(row) for row in questions]
            questions = [[] if cause else row for row, cause in zip(questions, causes, strict=True)]
        asked = [
            Asked(image=image, question=" ".join(question.split()) + _ENDING)
            for image, row in zip(images, questions, strict=True)
            for question in row
        ]
        chances = iter(await self.source.ask(asked, log_metric))
        scores: list[float | None] = []
        reasons = []
        for index, row in enumerate(questions):
            answers = [next(chances) for _ in row]
            known = [chance.yes for chance in answers if chance.yes is not None]
            whole = bool(row) and len(known) == len(row)
            scores.append(sum(known) / len(row) if whole else None)
            causes[index] = causes[index] or next((chance.cause for chance in answers if chance.cause), "")
            reasons.append(_least_likely(row, known) if whole else "")
        if log_extra is not None:
            log_extra("reason", reasons)
            log_extra("cause", causes)
        return scores

    def _cause(self, questions: Sequence[str]) -> str:
        if not questions:
            return f"the column '{self._column}' holds no question"
        most = f"{len(questions)} questions; at most {_MOST_QUESTIONS} are asked"
        return f"the column '{self._column}' holds {most}" if len(questions) > _MOST_QUESTIONS else ""


class _Writer:
    """Has the questions of a prompt written once and keeps them."""

    def __init__(self, settings: JudgeSettings) -> None:
        from r3_rl.scoring.judge import Judge

        self.judge = Judge(settings)
        self._written: dict[str, list[str]] = {}

    async def questions(self, prompts: Sequence[str]) -> tuple[list[list[str]], list[str]]:
        """Return the questions of each prompt, and why there are none."""
        from r3_rl.scoring.judge import Question

        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._written]
        replies = await self.judge.ask([Question(text=_WRITING.replace("{prompt}", prompt)) for prompt in new])
        causes: dict[str, str] = {}
        for prompt, reply in zip(new, replies, strict=True):
            written = None if reply.text is None else _read_questions(reply.text)
            if written is not None:
                self._written[prompt] = written
            else:
                causes[prompt] = reply.cause or f"the writer's reply is no list of questions: {shown(reply.text or '')}"
        return [self._written.get(prompt, []) for prompt in prompts], [causes.get(prompt, "") for prompt in prompts]


def _read_questions(text: str) -> list[str] | None:
    value = read_json(text)
    if not isinstance(value, list) or not 1 <= len(value) <= _MOST_QUESTIONS:
        return None
    return value if all(isinstance(question, str) and question.strip() for question in value) else None


def _least_likely(questions: Sequence[str], chances: Sequence[float]) -> str:
    chance, question = min(zip(chances, questions, strict=True))
    return f"least sure: {' '.join(question.split())} ({chance:.2f})"
