"""What a guard is: a name, what it looks for, and a look at the logged numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from r3_rl.observe.history import History

WINDOW = 20
"""Logged values that are averaged before two stretches of a run are compared."""
FEWEST = 5
"""Logged values below which a mean or a median over steps is not judged."""
NOTABLE_CHANGE = 0.02
"""Smallest change of a score that is worth a word, however sure it is."""
SURE = 3.0
"""Standard errors between two stretches; above 2, since the best of many earlier stretches is picked."""
RATIO_TOLERANCE = 1e-4
"""Largest |ratio - 1| of a first pass in float32."""
COARSE_RATIO_TOLERANCE = 0.05
"""The same in bfloat16, whose rounding alone moves the ratio by about 1e-2."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a guard has seen, in two clauses that make one sentence."""

    message: str
    """What was seen, with its figures."""
    advice: str
    """What to try."""


Look = Callable[[History, float], Found | None]
"""(logged numbers, largest |ratio - 1| that rounding explains) -> what is wrong, or None."""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """One thing that a run is watched for."""

    name: str
    """Its key in the section `guards` of a recipe."""
    words: str
    """What it is called in the report."""
    threshold: str
    """When it speaks."""
    look: Look
    explains: tuple[str, ...] = ()
    """Guards that see the same from further away: they are silent when this one speaks."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A guard that speaks."""

    guard: Guard
    found: Found

    @property
    def name(self) -> str:
        """Key of the guard."""
        return self.guard.name

    @property
    def sentence(self) -> str:
        """What was seen and what to try."""
        return f"{self.found.message}; {self.found.advice}"


def ratio_tolerance_of(dtype: str) -> float:
    """Largest |ratio - 1| that rounding explains for a policy that computes in `dtype`.

    >>> ratio_tolerance_of("float32"), ratio_tolerance_of("bfloat16")
    (0.0001, 0.05)
    """
    return RATIO_TOLERANCE if dtype in ("float32", "float64") else COARSE_RATIO_TOLERANCE


def surely_below(low: np.ndarray, high: np.ndarray) -> bool:
    """Whether one stretch of a score is below another one by more than chance and by enough to matter."""
    spread = math.sqrt(low.var(ddof=1) / low.size + high.var(ddof=1) / high.size)
    change = float(high.mean() - low.mean())
    return change > NOTABLE_CHANGE and change > SURE * spread


def steps_in_words(count: int) -> str:
    """`1 step`, `2 steps`."""
    return "1 step" if count == 1 else f"{count} steps"
