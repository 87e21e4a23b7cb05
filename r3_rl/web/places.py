"""How many requests may be inside a server; the next one is told when to come again."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from r3_rl.web.refusals import Refusal

_LONGEST_S = 60


class Places:
    """Counts the requests that are inside, and estimates when there will be room.

    Not thread-safe: all calls come from the server's event loop.

    Args:
        total: requests inside at once; one more is answered with 503.
        per_sender: requests of one sender inside at once; one more is answered with 429. None sets no limit.
        at_once: requests that are worked on together, for the estimate.
    """

    def __init__(self, total: int, *, per_sender: int | None = None, at_once: int = 1) -> None:
        self._total, self._per_sender, self._at_once = total, per_sender, at_once
        self._inside: Counter[str] = Counter()
        self._seconds = 1.0

    @contextmanager
    def place(self, sender: str = "") -> Iterator[None]:
        """Hold a place while the block runs. Raises `Refusal` if there is none."""
        if self._per_sender is not None and self._inside[sender] >= self._per_sender:
            raise Refusal(
                f"{self._inside[sender]} of your requests are waiting", status=429, retry_after_s=self._wait_s()
            )
        if (inside := self._inside.total()) >= self._total:
            raise Refusal(f"{inside} requests are waiting", status=503, retry_after_s=self._wait_s())
        self._inside[sender] += 1
        start = time.monotonic()
        try:
            yield
        finally:
            self._inside[sender] -= 1
            if not self._inside[sender]:
                del self._inside[sender]
            self._seconds = 0.8 * self._seconds + 0.2 * (time.monotonic() - start)

    def _wait_s(self) -> int:
        return min(_LONGEST_S, max(1, math.ceil(self._seconds * self._inside.total() / self._at_once)))
