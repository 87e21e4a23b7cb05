"""Seconds by stage, as `time/*_s` names them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

NAMES = {"plan": "draft", "refinement": "refine"}
"""Stage -> what its time counts as, where that is not its own name: a plan is part of its draft."""


@dataclass(kw_only=True)
class Stopwatch:
    """Adds up what an engine's stages take.

    >>> watch = Stopwatch()
    >>> with watch("plan", 8), watch("score", 8):
    ...     pass
    >>> sorted(watch.take())
    ['draft', 'score']
    """

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str, rows: int) -> Iterator[None]:
        """Adds the time of the block to a stage; `rows` is for watches that weigh."""
        name, begin = NAMES.get(stage, stage), time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def take(self) -> dict[str, float]:
        """The seconds since the last call."""
        taken, self.seconds = self.seconds, {}
        return taken
