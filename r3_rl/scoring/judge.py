"""A judge: questions about pictures to a model behind OpenAI-compatible servers (vLLM, SGLang, hosted ones).

A question ends in a `Reply`, with an answer or with the cause why there is none. What no retry can mend (a wrong key,
an unknown model, no server that answers) raises one `ScorerError`, and the questions beside it are given up.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from r3_rl.errors import InputError, MissingPackageError, ScorerError
from r3_rl.scoring.calls import LoopThread
from r3_rl.scoring.chat import (
    MalformedResponse,
    Question,
    Reply,
    error_words,
    png_data_url,
    read_response,
    request_body,
)
from r3_rl.scoring.judge_servers import Server, ServerPool
from r3_rl.scoring.judge_settings import JudgeSettings
from r3_rl.scoring.replies import shown
from r3_rl.scoring.retry_after import retry_after_s

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["Judge", "JudgeSettings", "Question", "Reply"]

_INSTALL = "pip install 'r3-rl[judge]'"
_WRONG_FOR_ONE = (400, 413, 422)


@dataclass(frozen=True, kw_only=True)
class _Fault:
    """An attempt that may go better elsewhere or later."""

    cause: str
    rest_s: float | None = None
    """What the server asked for."""


class Judge:
    """Asks questions, at most `num_concurrent` at once, of whichever server is idle and well.

    It may be used from any thread and any event loop: its requests live in a loop of its own, which starts with the
    first question. Raises MissingPackageError without the package `openai`.

    `settings` are `JudgeSettings` or their mapping, as a recipe holds it.
    """

    def __init__(self, settings: JudgeSettings | Mapping[str, Any]) -> None:
        self.settings = JudgeSettings.read(settings)
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise MissingPackageError("a judge needs the package openai", hint=_INSTALL) from error
        self._key = os.environ.get(self.settings.key_env, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise InputError(f"judge: the key in {self.settings.key_env} holds characters that no key has")
        self._pool = ServerPool(self.settings.base_urls, backoff_s=self.settings.backoff_s)
        self._slots = asyncio.Semaphore()
        self._clients: dict[str, AsyncOpenAI] = {}
        self._loop: LoopThread | None = None
        self._opening = threading.Lock()
        self._last_fault = _Fault(cause="judge: no answer")
        self.usd_so_far = 0.0

    async def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """Return a reply to each question; raises ScorerError for what no retry can mend."""
        with self._opening:
            if self._loop is None:
                self._loop = LoopThread("r3-judge")
                self._slots = asyncio.Semaphore(self.settings.num_concurrent)  # belongs to one loop
        return await asyncio.wrap_future(self._loop.submit(self._ask_all(questions)))

    def close(self) -> None:
        """Give up what is under way and close the connections; the next question opens them anew."""
        with self._opening:
            loop, self._loop = self._loop, None
        if loop is None:
            return
        try:
            loop.submit(self._close_clients()).result(timeout=2.0)
        finally:
            loop.close()

    def log_usage(self, replies: Sequence[Reply], num_samples: int, log_metric: Callable[[str, float], None]) -> None:
        """Log what replies cost: tokens and retries of a sample, and money where the settings hold prices.

        Tokens that a server does not count are left out of the metrics altogether, as is the money for them.
        """
        if not num_samples:
            return
        log_metric("retries_per_sample", sum(reply.num_retries for reply in replies) / num_samples)
        answered = [reply for reply in replies if reply.prompt_tokens is not None or not reply.cause]
        prices = (self.settings.usd_per_million_prompt_tokens, self.settings.usd_per_million_completion_tokens)
        usd = 0.0
        for name, price in zip(("prompt_tokens", "completion_tokens"), prices, strict=True):
            counts = [count for reply in answered if (count := getattr(reply, name)) is not None]
            if not counts or len(counts) < len(answered):
                return
            log_metric(f"{name}_per_sample", sum(counts) / num_samples)
            usd += sum(counts) * (price or 0.0) / 1e6
        if prices != (None, None):
            self.usd_so_far += usd
            log_metric("usd_per_sample", usd / num_samples)
            log_metric("usd_so_far", self.usd_so_far)

    async def _ask_all(self, questions: Sequence[Question]) -> list[Reply]:
        images = {id(question.image): question.image for question in questions if question.image is not None}
        urls = await asyncio.gather(*(asyncio.to_thread(png_data_url, image) for image in images.values()))
        url_of = dict(zip(images, urls, strict=True))
        tasks = [asyncio.create_task(self._ask(question, url_of.get(id(question.image)))) for question in questions]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:  # when one has raised, the others would only wait for the same end
                task.cancel()

    async def _ask(self, question: Question, image_url: str | None) -> Reply:
        settings = self.settings
        body = request_body(question, settings, image_url=image_url)
        async with self._slots:
            deadline = time.monotonic() + settings.deadline_s
            for attempt in range(settings.num_retries + 1):
                server = await self._awake_server(deadline)
                if server is None:
                    cause = (
                        f"{self._last_fault.cause}; a further attempt would pass deadline_s, {settings.deadline_s:g} s"
                    )
                    return Reply(cause=cause, num_retries=attempt)
                started = time.monotonic()
                with self._pool.using(server):
                    outcome = await self._attempt(server, body, question, deadline - started)
                if isinstance(outcome, Reply):
                    self._pool.succeeded(server)
                    return replace(outcome, num_retries=attempt)
                fault = self._last_fault = outcome
                self._pool.failed(server, started=started, now=time.monotonic(), rest_s=fault.rest_s)
                # Every question's failure lengthens the rest, so all give up together: each on its own would wait for
                # as many rests as there are questions.
                if self._pool.is_down(settings.num_retries + 1):
                    raise ScorerError(
                        f"{fault.cause}; no server of this judge gives an answer that can be used",
                        hint="is it running, and is it this one?",
                    )
        return Reply(cause=fault.cause, num_retries=settings.num_retries)

    async def _awake_server(self, deadline: float) -> Server | None:
        """Wait until a server may be asked; None when that is past the deadline."""
        while True:
            now = time.monotonic()
            server = self._pool.choose(now=now)
            wait_s = server.rests_until - now
            if now >= deadline or server.rests_until >= deadline:
                return None
            if wait_s <= 0:
                return server
            await asyncio.sleep(min(self._pool.spread(wait_s), deadline - now))

    async def _attempt(self, server: Server, body: dict[str, Any], question: Question, left_s: float) -> Reply | _Fault:
        import openai

        place = f"judge {server.url}"
        limit_s = min(self.settings.timeout_s, left_s)
        try:
            # The package's own limit starts anew with every byte, so that a server that drips would never reach it.
            async with asyncio.timeout(limit_s):
                content = await self._send(server, body)
            return read_response(content, question)
        except (TimeoutError, openai.APITimeoutError):
            return _Fault(cause=f"{place}: no answer within {limit_s:.3g} s")
        except MalformedResponse as error:
            return _Fault(cause=f"{place}: {self._without_key(str(error))}")
        except openai.APIConnectionError as error:
            return _Fault(cause=f"{place}: {self._connection_words(error)}")
        except openai.APIStatusError as error:
            return self._status_outcome(place, error)

    async def _send(self, server: Server, body: dict[str, Any]) -> bytes:
        from openai import omit

        # Only the key of this judge goes out, whatever else the environment holds for OpenAI's own servers.
        headers: dict[str, Any] = {"OpenAI-Organization": omit, "OpenAI-Project": omit, "Accept-Encoding": "identity"}
        if not self._key:
            headers["Authorization"] = omit
        client = self._clients.get(server.url) or self._connect(server)
        completions = client.chat.completions.with_raw_response
        raw = await completions.create(**body, extra_headers=headers, extra_body=self.settings.options or None)
        content: bytes = raw.http_response.content
        return content

    def _connect(self, server: Server) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        from r3_rl.scoring.judge_http import limited_client

        settings = self.settings
        self._clients[server.url] = AsyncOpenAI(
            base_url=server.url,
            api_key=self._key or "none",
            max_retries=0,  # a retry should go to another server, which the package knows nothing of
            timeout=settings.timeout_s,
            http_client=limited_client(max_bytes=settings.max_reply_bytes, num_connections=settings.num_concurrent),
        )
        return self._clients[server.url]

    async def _close_clients(self) -> None:
        clients, self._clients = self._clients, {}
        await asyncio.gather(*(client.close() for client in clients.values()), return_exceptions=True)

    def _connection_words(self, error: BaseException) -> str:
        from r3_rl.scoring.judge_http import ResponseTooLarge

        said = error.__cause__ or error  # the package's own words are "Connection error." whatever happened
        if isinstance(said, ResponseTooLarge):
            return str(said)
        cause: BaseException | None = said
        while cause is not None:
            if isinstance(cause, OSError) and cause.errno is not None and cause.errno > 0:
                return f"no connection ({os.strerror(cause.errno)})"
            cause = cause.__cause__ or cause.__context__
        return self._without_key(f"{type(said).__name__}: {said}")

    def _status_outcome(self, place: str, error: Any) -> Reply | _Fault:
        status = error.status_code
        text = f"{place}: status {status}, {self._without_key(_server_words(error))}"
        if status in _WRONG_FOR_ONE:
            return Reply(cause=text + _setting_for(text))
        if status in (401, 403):
            hint = f"the key is read from the environment variable {self.settings.key_env}"
            raise ScorerError(text, hint=hint + ("" if self._key else ", which is not set"))
        if status in (404, 405) or 300 <= status < 400:
            raise ScorerError(text, hint=f"does base_urls end in /v1, and is the model called {self.settings.model!r}?")
        return _Fault(cause=text, rest_s=retry_after_s(error.response.headers.get("retry-after", "")))

    def _without_key(self, text: str) -> str:
        cleaned = text.replace(self._key, "***") if self._key else text
        return shown(cleaned, 200)[1:-1]


# What a server may refuse of every request, and the setting that leaves it out; the longer names first.
_REFUSED = {
    "max_completion_tokens": "max_tokens_key: max_tokens",
    "top_logprobs": "a lower top_logprobs",
    "temperature": "temperature: null",
    "seed": "send_seed: false",
}


def _setting_for(words: str) -> str:
    named = (setting for name, setting in _REFUSED.items() if name in words)
    return next((f" (set {setting} under `judge`)" for setting in named), "")


def _server_words(error: Any) -> str:
    body = error.body
    return error_words(body) if isinstance(body, dict) and body.get("message") else _text_of(error.response)


def _text_of(response: Any) -> str:
    text: str = response.text[:1000]
    return text or "without a word"
