"""Intervals over items: against closed forms, and against what each item's seeds say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from r3_rl.benches.base import Figure, Sample
from r3_rl.benches.resampling import difference, estimate, values_of
from r3_rl.observe.statistics import share

RIGHT = Figure(name="right", label="Right")
RATE = Figure(name="repair", label="Repair rate")


def sample(item, **values):
    return Sample(item=str(item), values=values, shown={})


def of(rows, name="right"):
    """Values of items, one list of seeds each; None where an item has none."""
    return values_of(
        (seed, sample(item, **({} if value is None else {name: value})))
        for item, seeds in enumerate(rows)
        for seed, value in enumerate(seeds)
    )


def test_one_seed_of_zeros_and_ones_has_wilsons_interval():
    found = estimate(of([[1.0], [1.0], [0.0], [1.0]]), RIGHT)
    assert found.over_items == share([1, 1, 0, 1]) and found.over_seeds is None


def test_the_bootstrap_has_the_width_of_the_closed_form():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(400, 1)).tolist()
    found = estimate(of(rows), Figure(name="right", label="", unit="number"))
    half = 1.96 * np.std(rows, ddof=1) / math.sqrt(400)
    assert (found.over_items.high - found.over_items.low) / 2 == pytest.approx(half, rel=0.06)


def test_seeds_of_an_item_are_not_further_items():
    one = estimate(of([[1.0]] * 30 + [[0.0]] * 30), RIGHT).over_items
    many = estimate(of([[1.0] * 8] * 30 + [[0.0] * 8] * 30), RIGHT).over_items
    assert (one.low, one.high, one.count) == (many.low, many.high, many.count) and many.count == 60


def test_means_over_seeds_have_students_interval():
    found = estimate(of([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]), RIGHT)
    assert found.over_seeds.mean == pytest.approx(2 / 3) and found.over_seeds.count == 3
    assert found.over_items.mean == pytest.approx(2 / 3)


def test_a_rate_counts_the_items_that_have_it():
    found = estimate(of([[1.0], [None], [0.0], [None], [1.0]], "repair"), RATE)
    assert found.over_items == share([1, 0, 1])
    assert estimate(of([[None], [None]], "repair"), RATE) is None


def test_a_change_is_paired_by_item_and_counts_wins_ties_and_losses():
    before, after = of([[0.0], [0.0], [1.0], [1.0]]), of([[1.0], [0.0], [1.0], [0.0]])
    found = difference(before, after, RIGHT)
    assert (found.tally.wins, found.tally.ties, found.tally.losses) == (1, 2, 1) and found.over_items.mean == 0
    less = difference(before, after, Figure(name="right", label="", wanted="less"))
    assert (less.tally.wins, less.tally.losses) == (1, 1)
    same = difference(before, before, RIGHT)
    assert (same.over_items.low, same.over_items.high) == (0, 0), "the same resamples for both"


def test_a_change_of_rates_with_other_denominators_has_an_interval():
    before, after = of([[1.0], [0.0], [0.0], [None]] * 10, "repair"), of([[1.0], [1.0], [None], [0.0]] * 10, "repair")
    found = difference(before, after, RATE).over_items
    assert found.mean == pytest.approx(2 / 3 - 1 / 3) and found.low < found.mean < found.high


def test_a_formula_is_computed_in_every_resample():
    def f1(sums):
        return 2 * sums.sum("tp") / (2 * sums.sum("tp") + sums.sum("fp") + sums.sum("fn"))

    values = values_of((0, sample(i, tp=float(i % 2), fp=float(i % 4 == 0), fn=0.0)) for i in range(40))
    found = estimate(values, Figure(name="f1", label="F1", formula=f1)).over_items
    assert found.mean == pytest.approx(2 * 20 / (2 * 20 + 10)) and 0 < found.low < found.mean < found.high


def test_other_items_are_not_compared():
    other = values_of([(0, sample("x", right=1.0))])
    with pytest.raises(ValueError, match="different items"):
        difference(of([[1.0]]), other, RIGHT)
