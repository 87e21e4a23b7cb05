"""Several yes/no questions about a picture in one request: every answer is read, or the sample has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from r3_rl.scoring.replies import read_json_answers, read_lines, shown

if TYPE_CHECKING:
    from r3_rl.scoring.batch import Image
    from r3_rl.scoring.judge import Judge, Reply

Form = Literal["json", "lines", "evidence"]
"""How the judge is asked to answer: a JSON list, a line each, or JSON that says what is seen before yes or no."""

_ENDINGS: dict[Form, str] = {
    "json": 'Reply with a JSON list of {count} texts, each "yes" or "no", in the order of the questions. '
    "Write nothing else.",
    "lines": "Reply with {count} lines, one for each question in order: its number, a full stop, then yes or no. "
    "A reason may follow after a comma. Write nothing else.",
    "evidence": 'Reply with a JSON list of {count} objects in order, each {{"item": its number, "seen": a few words on '
    'what the picture shows, "answer": "yes" or "no"}}. Write nothing else.',
}


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a judge answered about one sample."""

    said: tuple[bool, ...] | None
    """One for each question that was asked, or None."""
    cause: str = ""
    """Why there is none."""


def as_label(label: Any) -> bool | None:
    """Read the expected answer of a data set: yes, no, true or false; None for anything else.

    >>> as_label("Yes "), as_label(False), as_label("maybe")
    (True, False, None)
    """
    if isinstance(label, bool):
        return label
    return {"yes": True, "no": False}.get(label.strip().casefold()) if isinstance(label, str) else None


def questions_text(task: str, questions: Sequence[str], form: Form) -> str:
    """Return the words of the request: the task, the questions by number, and how to answer.

    >>> questions_text("Look.", ["Is it red? "], "lines").splitlines()[:2]
    ['Look.', '1. Is it red?']
    """
    numbered = [f"{number}. {' '.join(question.split())}" for number, question in enumerate(questions, start=1)]
    return "\n".join([task, *numbered, _ENDINGS[form].format(count=len(questions))])


async def ask_yes_no(
    judge: Judge,
    images: Sequence[Image],
    questions: Sequence[Sequence[str]],
    *,
    task: str,
    form: Form,
    log_metric: Callable[[str, float], None] | None = None,
) -> list[Answers]:
    """Ask the questions of each sample about its image, uint8 [H, W, 3], in one request a sample.

    A reply with another number of answers than questions, or with one answer that is neither yes nor no, gives the
    sample no answers at all: a share of those that could be read would be a share of something else.
    """
    from r3_rl.scoring.judge import Question

    asked = [
        Question(text=questions_text(task, texts, form), image=image)
        for image, texts in zip(images, questions, strict=True)
    ]
    replies = await judge.ask(asked)
    if log_metric is not None:
        judge.log_usage(replies, len(asked), log_metric)
    return [_read(reply, len(texts), form) for reply, texts in zip(replies, questions, strict=True)]


def _read(reply: Reply, count: int, form: Form) -> Answers:
    if reply.text is None:
        return Answers(said=None, cause=reply.cause)
    said = read_lines(reply.text, count) if form == "lines" else read_json_answers(reply.text, count)
    if said is None:
        return Answers(said=None, cause=f"the judge's reply is not {count} answers of yes or no: {shown(reply.text)}")
    return Answers(said=tuple(said))
