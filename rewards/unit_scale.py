"""From the figure a scorer's authors publish to a score from 0 to 1, which is what a gain needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from r3_rl.errors import InputError


@dataclass(frozen=True, kw_only=True)
class UnitScale:
    """score = clip((published - low) / (high - low), 0, 1).

    The defaults of the scorers span the whole range of the figure, so their scores lie close together. A narrower span,
    such as PickScore from 17 to 24, spreads them; what lies outside is cut off and no longer told apart.

    >>> UnitScale(name="PickScore", low=17, high=24).scores([20.5, 16.0, float("nan")])
    [0.5, 0.0, None]
    """

    name: str
    """Of the published figure."""
    low: float
    """Published figure that scores 0."""
    high: float
    """Published figure that scores 1; above `low`."""

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise InputError(f"low must lie below high, and {self.low:g} does not lie below {self.high:g}")

    def scores(
        self,
        published: Sequence[float],
        *,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
    ) -> list[float | None]:
        """Return the scores; log the figures as published, their mean as the metric `published`.

        A figure that is no finite number gives None: cut off at the ends it would turn into a score.
        """
        finite = [figure for figure in published if math.isfinite(figure)]
        if log_metric is not None and finite:
            log_metric("published", math.fsum(finite) / len(finite))
        if log_extra is not None:
            log_extra("reason", [f"{self.name} {figure:.4g}" for figure in published])
            log_extra("cause", ["" if math.isfinite(f) else f"{self.name} is {f}" for f in published])
        return [self._score(figure) for figure in published]

    def _score(self, figure: float) -> float | None:
        if not math.isfinite(figure):
            return None
        return min(1.0, max(0.0, (figure - self.low) / (self.high - self.low)))
