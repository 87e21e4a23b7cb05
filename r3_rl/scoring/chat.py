"""The chat-completions protocol: a question as the body of a request, the body of a response as a `Reply`.

Source: OpenAI's API reference, "Create chat completion", as vLLM and SGLang serve it too.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from r3_rl.scoring.judge_settings import JudgeSettings
from r3_rl.scoring.replies import shown

if TYPE_CHECKING:
    from r3_rl.scoring.batch import Image

_CUT_OFF = "the answer was cut off; raise max_tokens"
_WITHHELD = "the server withheld the answer"
_OTHERWISE = "the answer did not end by itself"
_UNFINISHED = {
    _OTHERWISE: ("error", "abort", "cancel", "fail", "insufficient", "tool", "function", "time"),
    _CUT_OFF: ("length", "max_", "limit"),
    _WITHHELD: ("filter", "safety", "recitation", "blocklist", "prohibited", "refus", "sensitive"),
}
"""What a server's word for the end of an answer holds when it is not the end; every server has words of its own for an
answer that ended (`stop`, `eos_token`, `end_turn`, null)."""


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
    """The likeliest first tokens, at most `top_logprobs`; None where they were not asked for."""
    cause: str = ""
    """Why there is no answer, in one line; empty when there is one."""
    prompt_tokens: int | None = None
    """As the server counted them; None when it did not say."""
    completion_tokens: int | None = None
    """As the server counted them; None when it did not say."""
    num_retries: int = 0
    """Attempts that failed before this came."""


class MalformedResponse(Exception):
    """A response with status 200 that is no chat completion, in words that go on from the server's address."""


def png_data_url(image: Image) -> str:
    """Return an image, uint8 [H, W, 3], as a PNG in a `data:` address.

    >>> import numpy as np
    >>> png_data_url(np.zeros((2, 2, 3), dtype=np.uint8))[:30]
    'data:image/png;base64,iVBORw0K'
    """
    from r3_rl.scoring.png import encode_png

    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode("ascii")


def request_body(question: Question, settings: JudgeSettings, *, image_url: str | None) -> dict[str, Any]:
    """Return the JSON object that asks a question; what the settings leave out is not sent.

    >>> settings = JudgeSettings(base_urls=("http://127.0.0.1:8000/v1",), model="m", seed=3)
    >>> body = request_body(Question(text="Hello?"), settings, image_url=None)
    >>> body["temperature"], body["seed"], body["messages"]
    (0.0, 3, [{'role': 'user', 'content': [{'type': 'text', 'text': 'Hello?'}]}])
    """
    content: list[dict[str, Any]] = (
        [] if image_url is None else [{"type": "image_url", "image_url": {"url": image_url}}]
    )
    content.append({"type": "text", "text": question.text})
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": [{"role": "user", "content": content}],
        settings.max_tokens_key: 1 if question.first_token else settings.max_tokens,
    }
    if settings.temperature is not None:
        body["temperature"] = settings.temperature
    if settings.send_seed:
        body["seed"] = settings.seed
    if question.first_token:
        body |= {"logprobs": True, "top_logprobs": settings.top_logprobs}
    return body


def read_response(body: bytes, question: Question) -> Reply:
    """Read a response to a question; raises MalformedResponse for what is no chat completion.

    An answer that was cut off, refused or left empty is a reply with a cause and without a text.
    """
    try:
        # NaN and Infinity are no JSON, although Python reads them.
        payload = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _malformed(_what_it_is(body)) from error
    found = payload[0] if isinstance(payload, list) and payload else payload  # Google's gateway lists its errors
    if isinstance(found, dict) and found.get("error"):
        raise MalformedResponse(f"status 200 with an error: {error_words(found['error'])}")
    try:
        choice = _part(_part(payload, "choices", list), 0, dict)
    except MalformedResponse as error:
        raise MalformedResponse(f"{error}: {shown(body[:800].decode('utf-8', 'replace'), 200)}") from error
    usage = payload.get("usage")
    counts: dict[str, Any] = {name: _count(usage, name) for name in ("prompt_tokens", "completion_tokens")}
    if question.first_token:
        return _first_token_reply(choice, counts)
    message, finish = _part(choice, "message", dict), choice.get("finish_reason")
    text = _text(message.get("content"))
    word = str(finish).casefold()
    for cause, parts in _UNFINISHED.items():
        if any(part in word for part in parts):
            cause += f" (finish_reason {shown(str(finish))})" if cause == _OTHERWISE else ""
            said = f": {error_words(choice['error'])}" if choice.get("error") else ""
            return Reply(cause=cause + said, **counts)
    if not text.strip():
        return Reply(cause=_why_empty(message), **counts)
    return Reply(text=text, **counts)


def _text(content: Any) -> str:
    """The words of a message, which may come in parts; a part that thinks aloud is none of the answer."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise _malformed(f"its content is no text but {type(content).__name__}")
    texts = [part.get("text") for part in content if part.get("type", "text") in ("text", "output_text")]
    if not all(isinstance(text, str) for text in texts):
        raise _malformed("a part of its content is no text")
    return "".join(text for text in texts if isinstance(text, str))


def _why_empty(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    refusals = [message.get("refusal"), *(part.get("refusal") for part in parts)]
    if refusal := next(filter(None, refusals), None):
        return f"the model refuses: {shown(str(refusal), 200)}"
    kinds = [name for name, value in message.items() if value] + [str(part.get("type")) for part in parts]
    if any("reason" in kind or "think" in kind for kind in kinds):
        return "only reasoning came, no answer; start the server with a reasoning parser or raise max_tokens"
    return "the answer is empty"


def error_words(error: Any) -> str:
    """Return what a server says in an error object, in one line of bounded length."""
    inner = (error.get("message") or error.get("detail")) if isinstance(error, dict) else error
    return shown(inner if isinstance(inner, str) else json.dumps(error), 200)[1:-1]


def _what_it_is(body: bytes) -> str:
    start = body[:200].decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if start.startswith(("data:", "event:", "id:", "retry:", ":")):
        return "a stream of events, which was not asked for"
    if start.startswith("<"):
        return f"a web page, {shown(start)}"
    return f"no JSON, {shown(start)}" if start else "no JSON, nothing at all"


def _malformed(words: str) -> MalformedResponse:
    return MalformedResponse(f"its response is no chat completion: {words}")


def _first_token_reply(choice: dict[str, Any], counts: dict[str, Any]) -> Reply:
    if choice.get("logprobs") is None:
        return Reply(cause="the server gave no log-probs; without them nothing says how likely an answer is", **counts)
    places = _part(_part(choice, "logprobs", dict), "content", list)
    first = tuple(_chance(entry) for entry in _part(_part(places, 0, dict), "top_logprobs", list))
    total = math.fsum(chance.probability for chance in first)
    if not 0 < total < 1.01:
        raise _malformed(f"the probabilities of its first tokens sum to {total:.4g}")
    return Reply(first=first, **counts)


def _chance(entry: Any) -> TokenChance:
    logprob = _part(entry, "logprob", int | float)
    if isinstance(logprob, bool) or not logprob <= 1e-3:  # rounding in half precision; also refuses NaN
        raise _malformed(f"a log-prob of {shown(str(logprob), 20)[1:-1]}")
    return TokenChance(token=_part(entry, "token", str), probability=math.exp(min(max(logprob, -1000), 0)))


def _part(whole: Any, key: str | int, kind: Any) -> Any:
    try:
        part = whole[key]
    except (KeyError, IndexError, TypeError) as error:
        raise _malformed(f"no {key!r} in it" if isinstance(key, str) else "a list in it is empty") from error
    if not isinstance(part, kind):
        raise _malformed(f"{key!r} in it is {type(part).__name__}")
    return part


def _count(usage: Any, name: str) -> int | None:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None


def _refuse_constant(name: str) -> None:
    raise _malformed(f"it holds {name}, which is no JSON")
