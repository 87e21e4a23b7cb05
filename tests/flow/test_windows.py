from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from r3_rl.errors import InputError
from r3_rl.flow import choose_steps


def draws(window, num_steps, num_sde_steps, count=2000, **options):
    rng = np.random.default_rng(0)
    return [choose_steps(window, num_steps, num_sde_steps, rng=rng, **options) for _ in range(count)]


@pytest.mark.parametrize(
    ("window", "options", "allowed"),
    [
        ("random", {}, range(8)),
        ("first", {"window_size": 4}, range(4)),
        ("first", {}, range(2)),
        ("sliding", {"window_size": 4}, range(4)),
        ("sliding", {"window_size": 4, "progress": 0.5}, range(2, 6)),
        ("sliding", {"window_size": 4, "progress": 1.0}, range(4, 8)),
        ("all", {}, range(8)),
    ],
)
def test_steps_come_evenly_from_the_window_and_only_from_it(window, options, allowed):
    chosen = draws(window, 8, 2, **options)
    counts = Counter(step for steps in chosen for step in steps)
    size = 8 if window == "all" else 2
    assert all(len(steps) == size and list(steps) == sorted(set(steps)) for steps in chosen)
    assert set(counts) == set(allowed)
    expected = 2000 * size / len(allowed)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_the_same_generator_state_gives_the_same_steps():
    assert draws("random", 20, 1, count=20) == draws("random", 20, 1, count=20)


@pytest.mark.parametrize(
    ("window", "num_steps", "num_sde_steps", "options"),
    [
        ("rolling", 8, 1, {}),
        ("random", 8, 9, {}),
        ("random", 8, 0, {}),
        ("random", 8, 1, {"window_size": 4}),
        ("all", 8, 1, {"window_size": 4}),
        ("first", 8, 3, {"window_size": 2}),
        ("first", 8, 1, {"window_size": 0}),
        ("sliding", 8, 1, {"window_size": 9}),
        ("sliding", 8, 1, {"progress": 1.1}),
        ("all", 0, 1, {}),
    ],
)
def test_windows_that_do_not_fit_are_refused(window, num_steps, num_sde_steps, options):
    with pytest.raises(InputError):
        choose_steps(window, num_steps, num_sde_steps, rng=np.random.default_rng(0), **options)
