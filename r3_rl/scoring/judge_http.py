"""An HTTP client that stops reading a response that is too large, whatever its length or its status says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx2
from openai import DefaultAsyncHttpxClient


class ResponseTooLarge(httpx2.RequestError):
    """A server sent more than a chat completion can be; the `openai` package passes on what is a RequestError."""


class _Limited(httpx2.AsyncByteStream):
    def __init__(self, stream: Any, max_bytes: int) -> None:
        self._stream = stream
        self._max_bytes = max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        num_bytes = 0
        async for chunk in self._stream:
            num_bytes += len(chunk)
            if num_bytes > self._max_bytes:
                raise ResponseTooLarge(f"its response is longer than {self._max_bytes:,} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


def limited_client(*, max_bytes: int, num_connections: int) -> DefaultAsyncHttpxClient:
    """Return a client for the `openai` package that reads at most `max_bytes` of a response and follows no redirects.

    A compressed response is refused unread, since a small one may unpack to any size.
    """

    async def limit(response: httpx2.Response) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ResponseTooLarge("its response is compressed, which was not asked for")
        response.stream = _Limited(response.stream, max_bytes)

    return DefaultAsyncHttpxClient(
        event_hooks={"response": [limit]},
        follow_redirects=False,  # a redirect may lead to a server that nobody named
        limits=httpx2.Limits(max_connections=num_connections, max_keepalive_connections=num_connections),
    )
