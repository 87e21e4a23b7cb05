"""The body of a request, read with limits on its size and on the sender's time; and the sender's token."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from r3_rl.web.refusals import Refusal

if TYPE_CHECKING:
    from fastapi import Request


@dataclass(frozen=True, kw_only=True)
class BodyLimits:
    """The most that the body of a request may take."""

    size: int
    """Bytes."""
    total_s: float = 60.0
    """Seconds that a sender has for the complete body."""
    pause_s: float = 10.0
    """Seconds that a sender may pause within the body."""


async def read_body(request: Request, limits: BodyLimits) -> bytes:
    """Return the body of a request. Raises `Refusal` if it is too large (413), too slow (408) or incomplete."""
    from starlette.requests import ClientDisconnect

    claimed = request.headers.get("content-length", "")
    if claimed.isdecimal() and int(claimed) > limits.size:  # refused before a byte of it is read
        raise Refusal(f"a body of {claimed[:20]} bytes; at most {limits.size} are taken", status=413)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.total_s):
            chunks = request.stream()
            while (chunk := await _chunk(chunks, limits.pause_s)) is not None:
                body += chunk
                if len(body) > limits.size:
                    raise Refusal(f"a body of more than {limits.size} bytes", status=413)
    except ClientDisconnect:
        raise Refusal("the sender hung up") from None
    except TimeoutError:
        raise Refusal(f"the body did not arrive within {limits.total_s:g} s", status=408) from None
    return bytes(body)


async def _chunk(chunks: AsyncIterator[bytes], pause_s: float) -> bytes | None:
    waiting = asyncio.ensure_future(anext(chunks, None))
    done, _ = await asyncio.wait({waiting}, timeout=pause_s)
    if not done:
        waiting.cancel()
        raise Refusal(f"the sender paused for {pause_s:g} s", status=408)
    return waiting.result()


def check_token(request: Request, token: str) -> None:
    """Raise `Refusal` (401) unless the request carries `Authorization: Bearer TOKEN`; an empty token lets all in."""
    sent = request.headers.get("authorization", "").encode()
    if token and not hmac.compare_digest(sent, f"Bearer {token}".encode()):
        raise Refusal("the token is missing or wrong", status=401)
