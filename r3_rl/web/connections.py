"""Connections of the server: who has not sent a whole head of a request waits for a while only, and few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

_REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """How many connections there may be, and how long one may say nothing."""

    head_timeout_s: float = 10.0
    """Seconds for the head of a request, from the connection or from its first byte."""
    per_address: int = 64
    """Connections of one address."""
    total: int = 240
    """Connections of all."""


@dataclass(kw_only=True)
class _Open:
    """The connections of a server, the oldest first."""

    connections: dict[GuardedConnection, str] = field(default_factory=dict)
    """The address of each."""

    def of(self, address: str | None) -> Iterator[GuardedConnection]:
        return (one for one, other in self.connections.items() if address in (None, other))

    def make_room(self, address: str | None, most: int) -> bool:
        """Hang up on the connection that has waited longest without a request, where there are as many as may be."""
        there = list(self.of(address))
        if len(there) < most:
            return True
        idle = next((one for one in there if one.is_waiting), None)
        if idle is None:
            return False
        idle.hang_up()
        return True


class GuardedConnection(H11Protocol):
    """uvicorn's HTTP with a limit for heads and for connections; `guarded` makes the class of one server."""

    limits = ConnectionLimits()
    open = _Open()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False

    @property
    def is_waiting(self) -> bool:
        """Whether there is no request whose head has been read and which is not answered yet."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        peer = transport.get_extra_info("peername")
        address = str(peer[0]) if peer else ""
        limits = self.limits
        if not (self.open.make_room(address, limits.per_address) and self.open.make_room(None, limits.total)):
            self._refused = True
            transport.write(_REFUSED)
            transport.close()
            return
        self.open.connections[self] = address
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._refused:
            return
        self.open.connections.pop(self, None)
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        if not self.is_waiting:
            self._stop_timer()
        elif self._timer is None and not self.transport.is_closing():
            self._start_timer()  # uvicorn has just ended its own: some bytes came, and no head yet

    def on_response_complete(self) -> None:
        self._stop_timer()
        super().on_response_complete()

    def hang_up(self) -> None:
        """Close the connection now, whatever has been sent."""
        self.open.connections.pop(self, None)
        self.transport.abort()

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.limits.head_timeout_s, self._no_head)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _no_head(self) -> None:
        self._timer = None
        if self.is_waiting and not self.transport.is_closing():
            self.transport.write(_TOO_SLOW)
            self.transport.close()


def guarded(limits: ConnectionLimits) -> type[GuardedConnection]:
    """Return the protocol of one server: its limits, and its own list of connections."""
    return type("GuardedConnection", (GuardedConnection,), {"limits": limits, "open": _Open()})
