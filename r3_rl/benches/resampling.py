"""Means and other figures with 95 % intervals over items, each of which keeps all its seeds.

The unit is the item (a prompt, a question): seeds of one prompt are not independent prompts, so a bootstrap resamples
items and each brings what all its seeds gave. Two models are compared in the same resamples, which pairs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from r3_rl.benches.base import Figure, Sample
from r3_rl.observe.statistics import Interval, over_seeds, share

NUM_RESAMPLES = 2000
_AT_ONCE = 4_000_000
"""Numbers of one block of resamples."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Values:
    """Values of one model in one decoding, by name."""

    items: tuple[str, ...]
    seeds: tuple[int, ...]
    """Of each column."""
    arrays: Mapping[str, np.ndarray]
    """float64 [items, columns], a column for each seed and image of a prompt; NaN where a value does not apply."""

    def only(self, seed: int) -> Values:
        """The columns of one seed."""
        kept = [place for place, this in enumerate(self.seeds) if this == seed]
        arrays = {name: array[:, kept] for name, array in self.arrays.items()}
        return Values(items=self.items, seeds=(seed,) * len(kept), arrays=arrays)


def values_of(samples: Iterable[tuple[int, Sample]]) -> Values:
    """Arrange samples with their seeds.

    >>> one, other = Sample(item="a", values={"x": 1.0}, shown={}), Sample(item="b", values={}, shown={})
    >>> found = values_of([(0, one), (1, other)])
    >>> found.items, found.seeds, found.arrays["x"].tolist()
    (('a', 'b'), (0, 1), [[1.0, nan], [nan, nan]])
    """
    kept = list(samples)
    rows = {item: row for row, item in enumerate(dict.fromkeys(sample.item for _, sample in kept))}
    columns = {key: column for column, key in enumerate(sorted({(seed, sample.copy) for seed, sample in kept}))}
    names = dict.fromkeys(name for _, sample in kept for name in sample.values)
    arrays = {name: np.full((len(rows), len(columns)), np.nan) for name in names}
    for seed, sample in kept:
        for name, value in sample.values.items():
            arrays[name][rows[sample.item], columns[seed, sample.copy]] = value
    return Values(items=tuple(rows), seeds=tuple(seed for seed, _ in columns), arrays=arrays)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure of one model, or the change between two."""

    over_items: Interval
    """The 95 % interval over items, each with all its seeds."""
    over_seeds: Interval | None
    """Student's 95 % interval over the seeds; None with one seed."""
    tally: Tally | None = None
    """Items by sign, of a change: between two models, or of what the rounds change in one."""


@dataclass(frozen=True, kw_only=True)
class Tally:
    """On how many items something is better, equal or worse, by the mean over an item's seeds."""

    wins: int
    ties: int
    losses: int

    @classmethod
    def of(cls, changes: np.ndarray, *, less: bool = False) -> Tally:
        """Count changes [n]; `less`: whether a fall is a win.

        >>> Tally.of(np.array([0.5, 0.0, 0.0, -1.0]))
        Tally(wins=1, ties=2, losses=1)
        """
        changes = changes[np.isfinite(changes)] * (-1 if less else 1)
        wins, losses = int((changes > 1e-9).sum()), int((changes < -1e-9).sum())
        return cls(wins=wins, ties=len(changes) - wins - losses, losses=losses)


def estimate(values: Values, figure: Figure) -> Estimate | None:
    """Return a figure with its intervals; None if no item has it.

    Wilson's interval for a share of items that are right or wrong in all their seeds, else a bootstrap over items.
    """
    point = _point(values, figure)
    if point is None:
        return None
    plain = values.arrays.get(figure.name) if figure.formula is None else None
    interval = None if plain is None or figure.unit != "share" else _wilson(plain)
    if interval is None:
        low, high = _bounds([values], lambda these: _value(these[0], figure))
        interval = Interval(mean=point, low=low, high=high, count=_count(values, figure))
    counts = Tally.of(_item_means(plain)) if plain is not None and figure.unit == "change" else None
    seeds = _over_seeds(values, lambda one: _point(one, figure))
    return Estimate(over_items=interval, over_seeds=seeds, tally=counts)


def difference(before: Values, after: Values, figure: Figure) -> Estimate | None:
    """Return after - before with intervals, paired by item; None if either has no such figure.

    Raises:
        ValueError: the two were not measured on the same items.
    """
    if before.items != after.items:
        raise ValueError("the two models were measured on different items")
    first, second = _point(before, figure), _point(after, figure)
    if first is None or second is None:
        return None
    low, high = _bounds([before, after], lambda these: _value(these[1], figure) - _value(these[0], figure))
    count = min(_count(before, figure), _count(after, figure))

    def of_seed(seed: int) -> float | None:
        one, other = _point(before.only(seed), figure), _point(after.only(seed), figure)
        return None if one is None or other is None else other - one

    changes = [of_seed(seed) for seed in sorted(set(before.seeds) & set(after.seeds))]
    known = [change for change in changes if change is not None]
    seeds = over_seeds(known) if len(known) > 1 else None
    interval = Interval(mean=second - first, low=low, high=high, count=count)
    return Estimate(over_items=interval, over_seeds=seeds, tally=_tally(before, after, figure))


def _tally(before: Values, after: Values, figure: Figure) -> Tally | None:
    """None for figures that are not a value of single items, and for those of which neither is wanted."""
    if figure.formula is not None or figure.wanted == "neither":
        return None
    first, second = (_item_means(values.arrays[figure.name]) for values in (before, after))
    return Tally.of(second - first, less=figure.wanted == "less")


class _Sums:
    """Sums over items with weights [B, items]."""

    def __init__(self, values: Values, weights: np.ndarray) -> None:
        self._values, self._weights = values, weights

    def sum(self, name: str) -> np.ndarray:
        """Sums [B]."""
        array = self._values.arrays.get(name)
        if array is None:
            return np.zeros(len(self._weights))
        return np.asarray(self._weights @ np.nansum(array, axis=1))

    def mean(self, name: str) -> np.ndarray:
        """Means [B]."""
        array = self._values.arrays.get(name)
        counts = np.zeros(len(self._weights)) if array is None else self._weights @ np.isfinite(array).sum(axis=1)
        return np.divide(self.sum(name), counts, out=np.full(len(counts), np.nan), where=counts > 0)


def _value(sums: _Sums, figure: Figure) -> np.ndarray:
    return sums.mean(figure.name) if figure.formula is None else figure.formula(sums)


def _point(values: Values, figure: Figure) -> float | None:
    if not values.items:
        return None
    found = float(_value(_Sums(values, np.ones((1, len(values.items)))), figure)[0])
    return found if np.isfinite(found) else None


def _bounds(these: Sequence[Values], value: Callable[[list[_Sums]], np.ndarray]) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles over resamples of the items, which all models share."""
    count = len(these[0].items)
    rng, found, left = np.random.default_rng(0), [], NUM_RESAMPLES
    while left:
        block = min(left, max(1, _AT_ONCE // count))
        weights = rng.multinomial(count, np.full(count, 1 / count), size=block).astype(np.float64)
        found.append(value([_Sums(values, weights) for values in these]))
        left -= block
    low, high = np.nanquantile(np.concatenate(found), (0.025, 0.975))
    return float(low), float(high)


def _wilson(array: np.ndarray) -> Interval | None:
    """None unless every item's mean over its seeds is 0 or 1."""
    means = _item_means(array)
    means = means[np.isfinite(means)]
    return share(means.tolist()) if len(means) and np.isin(means, (0.0, 1.0)).all() else None


def _item_means(array: np.ndarray) -> np.ndarray:
    counts = np.isfinite(array).sum(axis=1)
    return np.divide(np.nansum(array, axis=1), counts, out=np.full(len(array), np.nan), where=counts > 0)


def _count(values: Values, figure: Figure) -> int:
    """Items that have the value; all of them for a formula."""
    array = values.arrays.get(figure.name) if figure.formula is None else None
    return len(values.items) if array is None else int(np.isfinite(array).any(axis=1).sum())


def _over_seeds(values: Values, point: Callable[[Values], float | None]) -> Interval | None:
    means = [point(values.only(seed)) for seed in sorted(set(values.seeds))]
    known = [mean for mean in means if mean is not None]
    return over_seeds(known) if len(known) > 1 else None
