"""Means with 95 % intervals: shares, before -> after differences on the same or on other items, and over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from r3_rl.errors import InputError

Z_95 = 1.959963984540054
# Two-sided 95 % quantiles of Student's t; a handful of seeds is what people have, so a table spares us scipy here.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
RESAMPLED_AT_ONCE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and the 95 % interval around it.

    >>> Interval(mean=0.25, low=0.1, high=0.4, count=60).excludes_zero
    True
    """

    mean: float
    low: float
    high: float
    count: int
    """Number of values (prompts, drafts, questions or seeds) behind the mean."""

    @property
    def excludes_zero(self) -> bool:
        """True when the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def as_dict(self) -> dict[str, float | int]:
        """The four fields as plain numbers, as `evaluation.json` holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, float]) -> Interval:
        """Read what `as_dict` wrote.

        >>> Interval.from_dict({"mean": 0.5, "low": 0.4, "high": 0.6, "count": 90}).count
        90
        """
        return cls(
            mean=float(fields["mean"]),
            low=float(fields["low"]),
            high=float(fields["high"]),
            count=int(fields["count"]),
        )


def _checked(values: Sequence[float], what: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise InputError(f"{what} needs at least one value, got shape {array.shape}", hint="leave the metric out")
    if not np.isfinite(array).all():
        raise InputError(f"{what} got a value that is not finite", hint="drop missing scores before averaging")
    return array


def share(values: Sequence[float]) -> Interval:
    """Wilson's score interval for the share of successes.

    centre = (p + z^2 / 2n) / (1 + z^2 / n), half = z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)

    Args:
        values: [n] successes, each 0 or 1 (or bool), n >= 1.

    Raises:
        InputError: when there is no value, or one is neither 0 nor 1.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference (1927).

    >>> interval = share([1, 1, 1, 0])
    >>> interval.mean, round(interval.low, 3), round(interval.high, 3)
    (0.75, 0.301, 0.954)
    """
    array = _checked(values, "a share")
    if not np.isin(array, (0.0, 1.0)).all():
        raise InputError("a share is made of zeros and ones", hint="use mean_of for values in between")
    n, p = array.size, float(array.mean())
    shrink = 1 + Z_95**2 / n
    centre = (p + Z_95**2 / (2 * n)) / shrink
    half = Z_95 / shrink * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n**2))
    # At p = 0 and p = 1 the bound is exactly the mean; rounding must not push it past.
    return Interval(mean=p, low=max(0.0, min(p, centre - half)), high=min(1.0, max(p, centre + half)), count=n)


def mean_of(values: Sequence[float], *, seed: int = 0, num_resamples: int = 2000) -> Interval:
    """Percentile bootstrap interval for the mean of values of any range.

    Args:
        values: [n] finite numbers, n >= 1.
        seed: of the resampling; the same seed gives the same interval.
        num_resamples: bootstrap samples drawn.

    Raises:
        InputError: when there is no value, or one is not finite.

    >>> mean_of([0.5, 0.5, 0.5]) == Interval(mean=0.5, low=0.5, high=0.5, count=3)
    True
    """
    array = _checked(values, "a mean")
    low, high = _bootstrap_bounds(array, seed, num_resamples)
    return Interval(mean=float(array.mean()), low=low, high=high, count=array.size)


def paired_difference(
    before: Sequence[float], after: Sequence[float], seed: int = 0, num_resamples: int = 2000
) -> Interval:
    """Bootstrap interval for mean(after - before), resampling prompts so that each keeps its pair.

    Args:
        before: [n] value of each prompt before training.
        after: [n] value of the same prompts, in the same order, after training.
        seed: of the resampling; the same seed gives the same interval.
        num_resamples: bootstrap samples drawn.

    Raises:
        InputError: when the lengths differ, there is no value, or one is not finite.

    Source: B. Efron, R. Tibshirani, An introduction to the bootstrap (1993), chapter 13 (percentile intervals).

    >>> paired_difference([0, 0, 1, 0], [1, 0, 1, 1]).mean
    0.5
    """
    first, second = _checked(before, "a difference"), _checked(after, "a difference")
    if first.size != second.size:
        raise InputError(
            f"{first.size} values before and {second.size} after cannot be paired",
            hint="measure both on the same prompts",
        )
    change = second - first
    low, high = _bootstrap_bounds(change, seed, num_resamples)
    return Interval(mean=float(change.mean()), low=low, high=high, count=change.size)


def unpaired_difference(
    before: Sequence[float], after: Sequence[float], interval: Callable[[Sequence[float]], Interval] = share
) -> Interval:
    """Newcombe's hybrid interval for the difference of two independent shares, or of two independent means.

    With p and [l, u] each share and its Wilson interval (or mean and bootstrap interval), and d = p_after - p_before:
    low = d - sqrt((p_after - l_after)^2 + (u_before - p_before)^2),
    high = d + sqrt((u_after - p_after)^2 + (p_before - l_before)^2)

    Args:
        before: [m] successes before training, each 0 or 1, m >= 1.
        after: [n] successes after training, of other items than before; n >= 1.
        interval: `share`, or `mean_of` for values that are not zeros and ones.

    Returns:
        The difference; `count` is the smaller of m and n.

    Raises:
        InputError: when either has no value, or one is neither 0 nor 1.

    Source: R. G. Newcombe, Interval estimation for the difference between independent proportions: comparison of
    eleven methods (1998), method 10; for means G. Y. Zou, A. Donner, Construction of confidence limits about effect
    measures (2008).

    >>> interval = unpaired_difference([1] * 48 + [0] * 32, [1] * 56 + [0] * 14)
    >>> round(interval.mean, 4), round(interval.low, 4), round(interval.high, 4)
    (0.2, 0.0524, 0.3339)
    """
    first, second = interval(before), interval(after)
    change = second.mean - first.mean
    low = change - math.hypot(second.mean - second.low, first.high - first.mean)
    high = change + math.hypot(second.high - second.mean, first.mean - first.low)
    return Interval(mean=change, low=low, high=high, count=min(first.count, second.count))


def over_seeds(means: Sequence[float]) -> Interval:
    """Student's t interval for the mean over runs that differ only in their seed.

    mean +- t(0.975, n - 1) * s / sqrt(n), with s the sample standard deviation.

    Args:
        means: [n] one number for each seed, n >= 2.

    Raises:
        InputError: with fewer than two seeds, which show no spread.

    >>> interval = over_seeds([0.70, 0.74, 0.72])
    >>> round(interval.mean, 3), round(interval.low, 3), round(interval.high, 3)
    (0.72, 0.67, 0.77)
    """
    array = _checked(means, "a mean over seeds")
    if array.size < 2:
        raise InputError("one seed has no spread", hint="run at least two seeds, or report the single run as it is")
    freedom = array.size - 1
    quantile = T_95[freedom - 1] if freedom <= len(T_95) else Z_95 + 2.4 / freedom
    mean, half = float(array.mean()), quantile * float(array.std(ddof=1)) / math.sqrt(array.size)
    return Interval(mean=mean, low=mean - half, high=mean + half, count=array.size)


def _bootstrap_bounds(values: np.ndarray, seed: int, num_resamples: int) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    rows_at_once = max(1, RESAMPLED_AT_ONCE // values.size)
    means: list[np.ndarray] = []
    for start in range(0, num_resamples, rows_at_once):
        rows = min(rows_at_once, num_resamples - start)
        means.append(values[generator.integers(values.size, size=(rows, values.size))].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)
