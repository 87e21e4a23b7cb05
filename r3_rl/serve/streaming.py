"""Answers while they are written: from the model's thread to the event loop, and out as server-sent events."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from r3_rl.policy.base import Heard
from r3_rl.serve.conversation import Answers, SoFar, head, so_far


def event(value: dict[str, Any]) -> str:
    """Return a server-sent event.

    >>> event({"a": 1})
    'data: {"a": 1}\\n\\n'
    """
    return f"data: {json.dumps(value)}\n\n"


class Chunks:
    """The server-sent events of a streamed answer: what was not sent yet of each text, why it ended, then `[DONE]`.

    Args:
        model: as the answer names it.
        n: number of answers.
    """

    def __init__(self, model: str, n: int) -> None:
        self._head = head(model, "chat.completion.chunk")
        self._sent: list[SoFar | None] = [None] * n

    def grown(self, texts: Sequence[str]) -> Iterator[str]:
        """What the texts [n] have more than before; they may still go on."""
        for index, text in enumerate(texts):
            if text:
                yield from self._more(index, so_far(text))

    def ended(self, found: Answers, *, include_usage: bool) -> Iterator[str]:
        """The rest of each answer, and its end."""
        for index, each in enumerate(found.answers):
            yield from self._more(index, SoFar(thought=each.thought, content=each.content, closed=True))
            yield self._event(index, {}, each.finish_reason)
        if include_usage:
            yield event({**self._head, "choices": [], "usage": found.usage})
        yield "data: [DONE]\n\n"

    def _more(self, index: int, now: SoFar) -> Iterator[str]:
        sent = self._sent[index]
        if sent is None:
            sent = SoFar(thought="", content="", closed=False)
            yield self._event(index, {"role": "assistant", "content": ""})
        thought, content = now.thought[len(sent.thought) :], now.content[len(sent.content) :]
        if thought:
            yield self._event(index, {"reasoning_content": thought})
        if content:
            yield self._event(index, {"content": content})
        # a text that is written again, after its batch has failed, is shorter for a while
        self._sent[index] = SoFar(
            thought=max(now.thought, sent.thought, key=len),
            content=max(now.content, sent.content, key=len),
            closed=now.closed,
        )

    def _event(self, index: int, delta: dict[str, str], ended: str | None = None) -> str:
        return event({**self._head, "choices": [{"index": index, "delta": delta, "finish_reason": ended}]})


class Hearing:
    """The texts of a request as far as they are written: the model's thread puts them in, the event loop waits.

    Args:
        n: number of texts.
    """

    def __init__(self, n: int) -> None:
        self.texts = [""] * n
        self._wake: Callable[[], object] = lambda: None

    def listeners(self) -> list[Heard]:
        """Who is told of each text."""
        return [partial(self._hear, index) for index in range(len(self.texts))]

    def wakes(self, wake: Callable[[], object]) -> None:
        """Call this from now on whenever a text has grown, in the model's thread."""
        self._wake = wake

    def _hear(self, index: int, text: str) -> None:
        self.texts[index] = text
        with suppress(RuntimeError):  # the event loop has ended: nobody waits any more
            self._wake()
