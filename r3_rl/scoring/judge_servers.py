"""Which server is asked next: the idlest that is not resting; a server rests after a failure, longer after each."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

_LONGEST_REST_S = 30.0


@dataclass(kw_only=True, eq=False)
class Server:
    """One address and how it is doing."""

    url: str
    num_in_flight: int = 0
    num_strikes: int = 0
    """Failures in a row; those of requests that were under way together count once."""
    rests_until: float = 0.0
    """Time of the clock before which it is not asked."""
    struck_at: float = float("-inf")
    num_chosen: int = 0


class ServerPool:
    """Spreads requests over servers of one model; times are seconds of one monotonic clock, given by the caller.

    rest = min(30, backoff_s 2^(strikes - 1)) (1 + u), u uniform in [-1/4, 1/4], or what the server asked for.

    >>> pool = ServerPool(["a", "b"], backoff_s=1.0)
    >>> pool.failed(pool.choose(now=0.0), started=0.0, now=0.1)
    >>> pool.choose(now=0.2).url
    'b'
    """

    def __init__(self, urls: Sequence[str], *, backoff_s: float) -> None:
        self.servers = tuple(Server(url=url) for url in urls)
        self._backoff_s = backoff_s
        self._random = random.Random()  # its own: jitter must not move the random numbers of a run

    def choose(self, *, now: float) -> Server:
        """Return the server with the fewest requests in flight, of those not resting; else the one that rests least."""
        awake = [server for server in self.servers if server.rests_until <= now]
        if not awake:
            return min(self.servers, key=lambda server: server.rests_until)
        return min(awake, key=lambda server: (server.num_in_flight, server.num_chosen))

    @contextmanager
    def using(self, server: Server) -> Iterator[None]:
        """Count a request to a server while it is under way."""
        server.num_in_flight += 1
        server.num_chosen += 1
        try:
            yield
        finally:
            server.num_in_flight -= 1

    def succeeded(self, server: Server) -> None:
        """Forget the failures of a server that answered."""
        server.num_strikes = 0

    def failed(self, server: Server, *, started: float, now: float, rest_s: float | None = None) -> None:
        """Let a server rest after the failure of a request sent at `started`; `rest_s` is what it asked for itself."""
        if started >= server.struck_at:
            server.num_strikes += 1
            server.struck_at = now
        if rest_s is None:
            longest = min(_LONGEST_REST_S, self._backoff_s * 2.0 ** min(server.num_strikes - 1, 30))
            rest_s = longest * self._random.uniform(0.75, 1.25)
        server.rests_until = max(server.rests_until, now + rest_s)

    def is_down(self, num_strikes: int) -> bool:
        """Say whether no server has answered lately: all have failed since, and `num_strikes` times in all."""
        strikes = [server.num_strikes for server in self.servers]
        return all(strikes) and sum(strikes) >= num_strikes

    def spread(self, wait_s: float) -> float:
        """Return a wait that is longer by up to a quarter, so that not all questions wake at once."""
        return wait_s * self._random.uniform(1.0, 1.25)
