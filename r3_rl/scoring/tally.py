"""Counting what one scorer gave within a step: its scores, what is missing and why, and the seconds it took."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

from r3_rl.observe.numbers import Numbers

RESERVED = ("mean", "std", "missing_fraction", "time_s")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A sample that has no score although the scorer applies to it."""

    position: int
    """Of the sample within the step, in the order of submission, from 0."""
    prompt: str
    cause: str
    error: BaseException | None = None

    @property
    def place(self) -> str:
        """The sample in words.

        >>> Failure(position=3, prompt="a red circle", cause="it returned None").place
        "sample 3 (prompt 'a red circle')"
        """
        shown = self.prompt if len(self.prompt) <= 80 else self.prompt[:77] + "..."
        return f"sample {self.position} (prompt {shown!r})"


@dataclass(kw_only=True)
class Tally:
    """What one scorer gave since the step began."""

    scores: list[float] = field(default_factory=list)
    num_missing: int = 0
    num_cached: int = 0
    seconds: float = 0.0
    first_failure: Failure | None = None
    logged: dict[str, list[float]] = field(default_factory=dict)

    @property
    def num_applicable(self) -> int:
        """Samples that the scorer should have scored."""
        return len(self.scores) + self.num_missing

    @property
    def missing_fraction(self) -> float:
        """Missing scores over applicable samples; 0 when the scorer applied to none."""
        return self.num_missing / self.num_applicable if self.num_applicable else 0.0

    def miss(self, failure: Failure) -> None:
        """Count a missing score; the earliest sample is kept, whatever order the calls end in."""
        self.num_missing += 1
        if self.first_failure is None or failure.position < self.first_failure.position:
            self.first_failure = failure

    def metrics(self, prefix: str) -> Numbers:
        """Return the metrics of the step; sums are exact, so the order in which calls end does not show.

        >>> Tally(scores=[0.0, 1.0], num_missing=2).metrics("rewards/a")["rewards/a/missing_fraction"]
        0.5
        """
        values = {f"{prefix}/missing_fraction": self.missing_fraction, f"{prefix}/time_s": self.seconds}
        sizes = {f"{prefix}/missing_fraction": self.num_applicable}
        if self.scores:  # a mean of nothing is absent, never 0
            values[f"{prefix}/mean"] = math.fsum(self.scores) / len(self.scores)
        if len(self.scores) > 1:
            values[f"{prefix}/std"] = statistics.stdev(self.scores)
        sizes |= {f"{prefix}/mean": len(self.scores), f"{prefix}/std": len(self.scores)}
        for name, logged in self.logged.items():
            values[f"{prefix}/{name}"] = _mean(logged)
            sizes[f"{prefix}/{name}"] = len(logged)
        return Numbers(values, sizes)


def _mean(values: list[float]) -> float:
    """The exact mean; NaN for what a scorer logged beyond what floats can add up."""
    try:
        return math.fsum(values) / len(values)
    except (OverflowError, ValueError):
        return math.nan
