import math

import numpy as np
import pytest

from r3_rl.errors import InputError
from r3_rl.observe import statistics
from r3_rl.observe.statistics import Interval, mean_of, over_seeds, paired_difference, share, unpaired_difference


def test_wilson_bounds_solve_the_score_equation():
    """The bounds are the p with |mean - p| = z sqrt(p (1 - p) / n), which the closed form must satisfy."""
    interval = share([1.0] * 37 + [0.0] * 63)
    for bound in (interval.low, interval.high):
        assert abs(0.37 - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / 100), rel=1e-5)


@pytest.mark.parametrize("values", [[0, 0, 0], [1, 1, 1], [True], [False]])
def test_extreme_shares_stay_inside_zero_and_one_and_hold_the_mean(values):
    interval = share(values)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1
    assert interval.high - interval.low > 0.3


def test_shares_of_many_drawn_samples_cover_the_truth_about_95_times_in_100():
    generator = np.random.default_rng(5)
    intervals = [share(generator.random(80) < 0.3) for _ in range(600)]
    covered = np.mean([this.low <= 0.3 <= this.high for this in intervals])
    assert 0.92 <= covered <= 0.98


def test_paired_difference_is_narrower_than_unpaired_when_prompts_differ():
    generator = np.random.default_rng(0)
    easy = generator.random(300)
    before = (easy > 0.6).astype(float)
    after = (easy > 0.5).astype(float)
    paired = paired_difference(before, after)
    shuffled = paired_difference(before, generator.permutation(after))
    assert paired.excludes_zero and paired.mean == pytest.approx(shuffled.mean)
    assert (paired.high - paired.low) < 0.6 * (shuffled.high - shuffled.low)


def test_newcombes_interval_is_that_of_his_table():
    """R. G. Newcombe (1998), table II, method 10: (a) 56/70 - 48/80, (b) 9/10 - 3/10, (f) 10/10 - 0/20."""
    for (x, m), (y, n), low, high in (
        ((48, 80), (56, 70), 0.0524, 0.3339),
        ((3, 10), (9, 10), 0.1705, 0.8090),
        ((0, 20), (10, 10), 0.6791, 1.0),
    ):
        interval = unpaired_difference([1] * x + [0] * (m - x), [1] * y + [0] * (n - y))
        assert (interval.mean, interval.count) == (pytest.approx(y / n - x / m), min(m, n))
        assert (interval.low, interval.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_unpaired_differences_cover_the_truth_about_95_times_in_100():
    generator = np.random.default_rng(6)
    found = [unpaired_difference(generator.random(60) < 0.4, generator.random(90) < 0.6) for _ in range(600)]
    assert 0.92 <= np.mean([this.low <= 0.2 <= this.high for this in found]) <= 0.98


def test_bootstrap_agrees_with_the_normal_interval_and_repeats_with_its_seed():
    generator = np.random.default_rng(1)
    values = generator.normal(0.2, 1.0, 2000)
    interval = mean_of(values, seed=4)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert interval == mean_of(values, seed=4) != mean_of(values, seed=5)


def test_resampling_in_pieces_gives_the_same_interval(monkeypatch):
    values = np.random.default_rng(2).random(120)
    whole = mean_of(values, num_resamples=50)
    monkeypatch.setattr(statistics, "RESAMPLED_AT_ONCE", 7 * values.size)
    assert mean_of(values, num_resamples=50) == whole


def test_over_seeds_matches_student_t_by_hand():
    interval = over_seeds([0.60, 0.70, 0.65, 0.75, 0.70])
    assert (interval.mean, interval.count) == (pytest.approx(0.68), 5)
    assert interval.high - interval.mean == pytest.approx(2.776 * 0.0570088 / math.sqrt(5), rel=1e-3)
    assert over_seeds(list(range(41))).high == pytest.approx(20 + 2.0211 * 11.979149 / math.sqrt(41), rel=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: share([]), "at least one value"),
        (lambda: share([0.5, 1.0]), "zeros and ones"),
        (lambda: mean_of([1.0, float("nan")]), "not finite"),
        (lambda: paired_difference([1.0], [1.0, 0.0]), "cannot be paired"),
        (lambda: unpaired_difference([], [1.0]), "at least one value"),
        (lambda: unpaired_difference([1.0], [0.5]), "zeros and ones"),
        (lambda: over_seeds([0.5]), "one seed has no spread"),
    ],
)
def test_wrong_input_is_one_clear_line(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_interval_survives_its_dictionary():
    interval = share([1, 0, 1])
    assert Interval.from_dict(interval.as_dict()) == interval
