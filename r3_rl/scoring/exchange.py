"""One request to a server of scorers, answered or given up: time limit, retries with back-off, size limit.

Tried again: a connection that fails, and 408, 425, 429, 500, 502, 503, 504. A server that says `Retry-After` is asked
again then, for as long as there is time. Everything else ends at once, in one line.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from r3_rl.errors import MissingPackageError, ScorerError
from r3_rl.scoring.retry_after import retry_after_s

try:
    import httpx
except ImportError as error:
    raise MissingPackageError("a remote scorer needs httpx", hint="pip install 'r3-rl[serve]'") from error

if TYPE_CHECKING:
    import ssl

_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONNECT_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_MAX_ERROR_BYTES = 64 << 10


class RemoteScorerError(ScorerError):
    """A server of scorers gave no answer that can be used; the line says which server and why."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A server and how patient to be with it."""

    url: str
    """Address without a slash at the end."""
    token: str = field(repr=False)
    """Sent as `Authorization: Bearer TOKEN`; empty sends none."""
    timeout_s: float
    """Seconds for a request with all its retries."""
    attempts: int
    """Failures after which it is given up, at least 1; `Retry-After` does not count."""
    tls: ssl.SSLContext | None
    """For https."""

    def client(self) -> httpx.AsyncClient:
        """Return a client for some requests: one for each call, since a client belongs to an event loop."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "r3-rl"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        return httpx.AsyncClient(
            headers=headers,
            # `fetch` keeps the limit for the whole: a byte now and then would never run into httpx's.
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            verify=self.tls if self.tls is not None else False,
            trust_env=False,  # no detour over a proxy to a machine next door
            follow_redirects=False,
        )

    async def fetch(self, client: httpx.AsyncClient, path: str, *, max_bytes: int, body: bytes | None = None) -> bytes:
        """Return the body of a 200; `body` is posted, without one it is a GET. Raises `RemoteScorerError`."""
        deadline = time.monotonic() + self.timeout_s
        problem, failures = "", 0
        try:
            async with asyncio.timeout(self.timeout_s):
                while True:
                    reply = await self._once(client, path, body, max_bytes)
                    if reply.status == 200:
                        return reply.body
                    problem = reply.problem
                    failures += reply.wait_s is None
                    if not reply.again or failures >= self.attempts:
                        raise self._given_up(problem, failures)
                    pause_s = _pause(failures, reply.wait_s)
                    if time.monotonic() + pause_s > deadline:
                        raise self._given_up(f"{problem}; no time left of {self.timeout_s:g} s", failures)
                    await asyncio.sleep(pause_s)
        except TimeoutError:
            last = f" (before that: {problem})" if problem else ""
            raise RemoteScorerError(f"{self.url}: no answer within {self.timeout_s:g} s{last}") from None

    def _given_up(self, problem: str, failures: int) -> RemoteScorerError:
        tries = f" ({failures} attempts)" if failures > 1 else ""
        return RemoteScorerError(f"{self.url}: {problem}{tries}")

    async def _once(self, client: httpx.AsyncClient, path: str, body: bytes | None, max_bytes: int) -> _Reply:
        try:
            async with client.stream("GET" if body is None else "POST", self.url + path, content=body) as response:
                return await _read(response, max_bytes)
        except httpx.ConnectTimeout:
            return _Reply(problem=f"no connection within {_CONNECT_S:g} s", again=True)
        except httpx.ConnectError as error:
            return _Reply(problem=f"no connection ({_root(error)}); is `r3 rewards serve` running there?", again=True)
        except httpx.TransportError as error:
            return _Reply(problem=f"the connection broke ({type(error).__name__}: {_line(str(error))})", again=True)


@dataclass(frozen=True, kw_only=True)
class _Reply:
    status: int = 0
    """0 when there was none."""
    body: bytes = b""
    problem: str = ""
    again: bool = False
    wait_s: float | None = None
    """Seconds of `Retry-After`."""


async def _read(response: httpx.Response, max_bytes: int) -> _Reply:
    most = max_bytes if response.status_code == 200 else _MAX_ERROR_BYTES
    if response.headers.get("content-encoding", "identity") != "identity":  # a small body may unpack to any size
        return _Reply(problem="the answer is compressed, which was not asked for")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > most:
            if response.status_code != 200:
                break
            return _Reply(problem=f"the answer has more than {most} bytes")
    if response.status_code == 200:
        return _Reply(status=200, body=bytes(body))
    return _Reply(
        status=response.status_code,
        problem=f"HTTP {response.status_code} {_said(bytes(body))}".rstrip(),
        again=response.status_code in _AGAIN,
        wait_s=retry_after_s(response.headers.get("retry-after", "")),
    )


def _root(error: BaseException) -> str:
    """What the system said, such as `Connection refused`; libraries wrap it in words of their own."""
    said, cause = str(error), error.__cause__ or error.__context__
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno > 0:
            said = os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return _line(said)


def _said(body: bytes) -> str:
    """The message of an error of ours; nothing of a body that is none."""
    try:
        return f"({_line(json.loads(body)['error']['message'])})"
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _line(text: object) -> str:
    if not isinstance(text, str):
        raise TypeError("not a text")
    return "".join(letter if letter.isprintable() else " " for letter in text)[:300]


def _pause(failures: int, wait_s: float | None) -> float:
    if wait_s is not None:  # spread, so that those who were sent away together do not come back together
        return wait_s + random.uniform(0.0, 0.2 + 0.1 * wait_s)
    return random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (failures - 1))
