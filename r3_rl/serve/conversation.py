"""A conversation about images: messages become the context of one text, and the text an answer with its usage."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from r3_rl.modalities import Context, ImagePiece, Piece, TextPiece, TextSegment
from r3_rl.pixels import from_picture
from r3_rl.serve.images import file_in, opened, unpacked
from r3_rl.serve.limits import ServeLimits
from r3_rl.serve.requests import BadField, ChatAsked, TextPart, check_at_most, check_text
from r3_rl.stages.protocol import END_THINK, THINK

DEFAULT_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer to a conversation."""

    content: str
    """What follows the thought, or the whole text if it is not one closed thought and a rest."""
    thought: str
    """The thought, without its marks; empty if there is none or it was not closed."""
    finish_reason: str
    """`stop`, or `length` if the text ran into `max_tokens`."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What was written to one request."""

    model: str
    answers: Sequence[Answer]
    prompt_tokens: int
    """Of the context, images included."""
    completion_tokens: int

    @property
    def usage(self) -> dict[str, int]:
        """As in the answer."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }


def images_of(asked: ChatAsked, limits: ServeLimits) -> list[Image.Image]:
    """Return the images of a conversation in order, their pixels not unpacked yet; raises `Refusal`."""
    found: list[Image.Image] = []
    for number, message in enumerate(asked.messages):
        for part in message.parts:
            if isinstance(part, TextPart):
                continue
            if len(found) == limits.num_images:
                raise BadField(f"messages.{number}", f"more than {limits.num_images} images in a conversation")
            found.append(opened(file_in(part.image_url.url), most=limits.image_pixels))
    return found


def check_conversation(asked: ChatAsked, limits: ServeLimits) -> None:
    """Raise `Refusal` for a conversation that is beyond the limits, says nothing, or does not end with a question."""
    texts = [part.text for m in asked.messages for part in m.parts if isinstance(part, TextPart) and part.text.strip()]
    check_text("messages", "".join(texts), most=limits.chat_letters)
    if asked.messages[-1].role == "assistant":
        raise BadField("messages", "the last one is the assistant's, so nothing is asked")
    check_at_most("n", asked.n, limits.n)
    check_at_most("max_tokens", most_tokens(asked), limits.max_tokens)


def most_tokens(asked: ChatAsked) -> int:
    """Tokens of an answer at most."""
    return asked.max_completion_tokens or asked.max_tokens or DEFAULT_TOKENS


def context_of(asked: ChatAsked, images: Sequence[Image.Image]) -> Context:
    """Return what the policy reads: texts and images in the order of the messages; empty texts are left out."""
    pictures = iter(images)
    pieces: list[Piece] = []
    for message in asked.messages:
        for part in message.parts:
            if not isinstance(part, TextPart):
                pieces.append(ImagePiece(image=from_picture(unpacked(next(pictures))), use="look"))
            elif part.text.strip():
                pieces.append(TextPiece(text=part.text, keep=message.role in ("system", "developer")))
    return tuple(pieces)


def answer_of(text: TextSegment) -> Answer:
    """Read a text as an answer."""
    found = so_far(text.text)
    whole = found if found.closed else SoFar(thought="", content=text.text, closed=True)
    return Answer(content=whole.content, thought=whole.thought, finish_reason="stop" if text.ended else "length")


@dataclass(frozen=True, kw_only=True)
class SoFar:
    """A text that may still go on, as a thought and what follows it."""

    thought: str
    content: str
    closed: bool
    """Whether the thought, if there is one, has ended."""


def so_far(text: str) -> SoFar:
    """Read the beginning of a text. What may still become something else is left out: half a mark, half a letter.

    >>> so_far("<think> two red cir"), so_far("<think> two </think> two").content, so_far("two").content
    (SoFar(thought='two red cir', content='', closed=False), 'two', 'two')
    >>> so_far("<th").content, so_far("<think> two </th").thought
    ('', 'two')
    """
    text = text.rstrip("\N{REPLACEMENT CHARACTER}").strip()
    if not text.startswith(THINK):
        return SoFar(thought="", content="" if THINK.startswith(text) else text, closed=not THINK.startswith(text))
    thought, mark, rest = text.removeprefix(THINK).partition(END_THINK)
    if not mark:
        half = next((n for n in range(len(END_THINK), 0, -1) if thought.endswith(END_THINK[:n])), 0)
        thought = thought[: len(thought) - half]
    return SoFar(thought=thought.strip(), content=rest.strip(), closed=bool(mark))


def completion(found: Answers) -> dict[str, Any]:
    """Return the answers as a `chat.completion`."""
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": each.content, **_reasoning(each)},
            "finish_reason": each.finish_reason,
        }
        for i, each in enumerate(found.answers)
    ]
    return {**head(found.model, "chat.completion"), "choices": choices, "usage": found.usage}


def _reasoning(answer: Answer) -> dict[str, str]:
    return {"reasoning_content": answer.thought} if answer.thought else {}


def head(model: str, kind: str) -> dict[str, Any]:
    """What every object of an answer begins with."""
    return {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}
