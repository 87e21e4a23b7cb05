from __future__ import annotations

import re

import pytest
import torch

from r3_rl.errors import InputError
from r3_rl.flow import shifted_schedule


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("00_primitives.npz", r"sched_n(?P<points>\d+)_s(?P<shift>[\d.]+)"),
        ("10_sde_steps.npz", r"mg_time_shift_(?P<shift>[\d.]+)_n(?P<points>\d+)"),
    ],
)
def test_schedules_are_those_recorded(golden, file, pattern):
    recorded = {key: value for key, value in golden(file).items() if re.fullmatch(pattern, key)}
    if not recorded:
        pytest.skip(f"{file} holds no schedule")
    for key, times in recorded.items():
        found = re.fullmatch(pattern, key)
        assert found is not None
        built = shifted_schedule(int(found["points"]), float(found["shift"]))
        assert built.dtype == torch.float32
        torch.testing.assert_close(built, times, rtol=0, atol=2e-7, msg=lambda text, key=key: f"{key}: {text}")


def test_sampling_times_of_the_recorded_drawings_are_the_schedule(golden):
    times = golden("03_generate_t2i.npz")["timesteps_full"]
    torch.testing.assert_close(shifted_schedule(len(times), 3.0), times, rtol=0, atol=2e-7)


def test_n_points_are_n_minus_one_falling_steps():
    times = shifted_schedule(50, 3.0)
    assert times[0] == 1 and times[-1] == 0
    assert len(times.diff()) == 49 and bool((times.diff() < 0).all())


@pytest.mark.parametrize(("points", "shift"), [(1, 3.0), (8, 0.0), (8, -1.0), (8, float("nan"))])
def test_a_schedule_without_steps_or_with_a_senseless_shift_is_refused(points, shift):
    with pytest.raises(InputError, match=r"schedule"):
        shifted_schedule(points, shift)
