"""The chat-completions protocol: a question as the body of a request, the body of a response as a `Reply`.

Source: OpenAI's API reference, "Create chat completion", as vLLM and SGLang serve it too.
"""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from r3_rl.scoring.batch import Image

NUM_TOP = 20
"""Alternatives asked for beside the first token: the most that the protocol allows."""

_UNFINISHED = {
    "length": "the answer was cut off; raise max_tokens",
    "content_filter": "the server withheld the answer",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """One request to a judge."""

    text: str
    image: Image | None = None
    """uint8 [H, W, 3], shown before the text."""
    first_token: bool = False
    """True asks for one token and the log-probs of its alternatives instead of an answer in words."""


@dataclass(frozen=True, kw_only=True)
class TokenChance:
    """A token that could have stood first, and how likely it was."""

    token: str
    probability: float
    """0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came of a question: an answer, or why there is none."""

    text: str | None = None
    """The whole answer; None when there is none."""
    first: tuple[TokenChance, ...] | None = None
    """The likeliest first tokens, at most 20; None where they were not asked for."""
    cause: str = ""
    """Why there is no answer, in one line; empty when there is one."""
    prompt_tokens: int | None = None
    """As the server counted them; None when it did not say."""
    completion_tokens: int | None = None
    """As the server counted them; None when it did not say."""
    num_retries: int = 0
    """Attempts that failed before this came."""


class MalformedResponse(Exception):
    """A response with status 200 that is no chat completion."""


def png_data_url(image: Image) -> str:
    """Return an image, uint8 [H, W, 3], as a PNG in a `data:` address.

    >>> import numpy as np
    >>> png_data_url(np.zeros((2, 2, 3), dtype=np.uint8))[:30]
    'data:image/png;base64,iVBORw0K'
    """
    from r3_rl.scoring.png import encode_png

    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode("ascii")


def request_body(
    question: Question, *, image_url: str | None, model: str, seed: int, max_tokens: int
) -> dict[str, Any]:
    """Return the JSON object that asks a question at temperature 0.

    >>> body = request_body(Question(text="Hello?"), image_url=None, model="m", seed=3, max_tokens=9)
    >>> body["temperature"], body["seed"], body["messages"]
    (0.0, 3, [{'role': 'user', 'content': [{'type': 'text', 'text': 'Hello?'}]}])
    """
    content: list[dict[str, Any]] = (
        [] if image_url is None else [{"type": "image_url", "image_url": {"url": image_url}}]
    )
    content.append({"type": "text", "text": question.text})
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0.0,
        "seed": seed,
        "max_completion_tokens": 1 if question.first_token else max_tokens,
    }
    if question.first_token:
        body |= {"logprobs": True, "top_logprobs": NUM_TOP}
    return body


def read_response(body: bytes, question: Question) -> Reply:
    """Read a response to a question; raises MalformedResponse for what is no chat completion.

    An answer that was cut off, refused or left empty is a reply with a cause and without a text.
    """
    try:
        # NaN and Infinity are no JSON, although Python reads them.
        payload = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedResponse("no JSON") from error
    choice = _part(_part(payload, "choices", list), 0, dict)
    usage = payload.get("usage")
    counts: dict[str, Any] = {name: _count(usage, name) for name in ("prompt_tokens", "completion_tokens")}
    if question.first_token:
        return _first_token_reply(choice, counts)
    content, finish = _part(choice, "message", dict).get("content"), choice.get("finish_reason")
    if content is not None and not isinstance(content, str):
        raise MalformedResponse(f"its content is no text but {type(content).__name__}")
    if finish != "stop":
        cause = _UNFINISHED.get(str(finish), f"the answer did not end by itself (finish_reason {finish!r})")
        return Reply(cause=cause, **counts)
    if not (content or "").strip():
        return Reply(cause="the answer is empty", **counts)
    return Reply(text=content, **counts)


def _first_token_reply(choice: dict[str, Any], counts: dict[str, Any]) -> Reply:
    if choice.get("logprobs") is None:
        return Reply(cause="the server gave no log-probs; without them nothing says how likely an answer is", **counts)
    places = _part(_part(choice, "logprobs", dict), "content", list)
    first = tuple(_chance(entry) for entry in _part(_part(places, 0, dict), "top_logprobs", list))
    total = math.fsum(chance.probability for chance in first)
    if not 0 < total < 1.01:
        raise MalformedResponse(f"the probabilities of its first tokens sum to {total:.4g}")
    return Reply(first=first, **counts)


def _chance(entry: Any) -> TokenChance:
    logprob = _part(entry, "logprob", int | float)
    if isinstance(logprob, bool) or not logprob <= 1e-3:  # rounding in half precision; also refuses NaN
        raise MalformedResponse(f"a log-prob of {logprob}")
    return TokenChance(token=_part(entry, "token", str), probability=math.exp(min(max(logprob, -1000), 0)))


def _part(whole: Any, key: str | int, kind: Any) -> Any:
    try:
        part = whole[key]
    except (KeyError, IndexError, TypeError) as error:
        raise MalformedResponse(f"no {key!r} in it" if isinstance(key, str) else "a list in it is empty") from error
    if not isinstance(part, kind):
        raise MalformedResponse(f"{key!r} in it is {type(part).__name__}")
    return part


def _count(usage: Any, name: str) -> int | None:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None


def _refuse_constant(name: str) -> None:
    raise MalformedResponse(f"it holds {name}, which is no JSON")
