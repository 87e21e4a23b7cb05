import random

import pytest

from r3_rl.observe.alarms import CHECKS, LiveAlarms, find_alarms, ratio_tolerance_of


def run(draft, gain, *, steps=100, noise=0.03):
    """Rows whose draft score and gain follow two functions of the progress in [0, 1]."""
    source = random.Random(1)
    return [
        {
            "step": step,
            "refine/draft_score": draft(step / steps) + source.gauss(0, noise),
            "refine/gain_mean": gain(step / steps) + source.gauss(0, noise),
        }
        for step in range(1, steps + 1)
    ]


def names(rows):
    return [alarm.name for alarm in find_alarms(rows)]


def test_gain_rising_because_drafts_get_worse_is_named():
    rows = run(lambda done: 0.7 - 0.3 * done, lambda done: 0.05 + 0.25 * done)
    (alarm,) = find_alarms(rows)
    assert alarm.name == "drafts_get_worse"
    assert "The gain rose from 0.0" in alarm.message and "fell from 0.6" in alarm.message
    assert "worse drafts" in alarm.advice


def test_it_is_also_named_after_a_rise():
    """Drafts that rise first and fall then end where they began; start against end would see nothing."""
    rows = run(lambda done: 0.5 + 0.8 * done * (1 - done), lambda done: 0.3 - 0.8 * done * (1 - done))
    assert names(rows) == ["drafts_get_worse"]


def test_it_is_named_when_reason_and_refine_steps_alternate():
    rows = run(lambda done: 0.7 - 0.3 * done, lambda done: 0.05 + 0.25 * done, steps=200)
    for row in rows:
        del row["refine/gain_mean" if row["step"] % 2 else "refine/draft_score"]
    assert names(rows) == ["drafts_get_worse"]


def test_worse_drafts_without_gain_are_a_collapse():
    assert names(run(lambda done: 0.7 - 0.4 * done, lambda done: 0.1)) == ["draft_collapse"]


@pytest.mark.parametrize(
    ("draft", "gain"),
    [
        (lambda done: 0.5 + 0.3 * done, lambda done: 0.1 + 0.1 * done),
        (lambda done: 0.5 + 0.3 * done, lambda done: 0.2 - 0.2 * done),
        (lambda done: 0.6, lambda done: 0.1),
    ],
)
def test_healthy_runs_raise_nothing(draft, gain):
    assert names(run(draft, gain)) == []


def test_a_short_run_is_not_judged():
    assert names(run(lambda done: 0.9 - 0.8 * done, lambda done: done, steps=30)) == []


def test_equal_groups_missing_scores_ratio_and_non_finite_values():
    rows = [
        {
            "step": step,
            "frac_reward_zero_std": 0.8,
            "scores/missing_fraction": 0.5 if step == 2 else 0.0,
            "ratio/image_deviation": 3e-3 if step == 3 else 1e-6,
            "kl": None if step == 4 else 0.1,
            **({"not_finite": ["kl"]} if step == 4 else {}),
        }
        for step in range(1, 6)
    ]
    found = {alarm.name: alarm.message for alarm in find_alarms(rows)}
    assert set(found) == {"equal_groups", "missing_scores", "off_policy_ratio", "not_finite"} <= set(CHECKS)
    assert "80%" in found["equal_groups"]
    assert "10.00% of all scores" in found["missing_scores"] and "step 2: 50.0%" in found["missing_scores"]
    assert "image" in found["off_policy_ratio"] and "step 3" in found["off_policy_ratio"]
    assert find_alarms(rows[2:3], ratio_tolerance=ratio_tolerance_of("bfloat16")) == []
    assert "kl" in found["not_finite"] and "step 4" in found["not_finite"]


def test_gradients_near_the_epsilon_are_named():
    near = [{"step": step, "grad/over_epsilon": 3.0} for step in range(1, 31)]
    (alarm,) = find_alarms(near)
    assert alarm.name == "near_epsilon" and "3 times" in alarm.message and "adam_epsilon" in alarm.advice
    assert names([{**row, "grad/over_epsilon": 300.0} for row in near]) == []
    assert names([{**row, "grad/over_epsilon": 0.1 if row["step"] < 5 else 300.0} for row in near]) == [], "warm-up"


def test_one_flat_step_is_no_alarm_and_a_lasting_one_is_said_once():
    live = LiveAlarms()
    said = [live.add({"step": step, "frac_reward_zero_std": 1.0}) for step in range(1, 9)]
    assert [len(lines) for lines in said] == [0, 0, 0, 0, 1, 0, 0, 0]
    assert said[4][0].startswith("alarm at step 5: groups whose rewards are all equal; choose harder prompts")
    assert not any(LiveAlarms([{"step": s, "frac_reward_zero_std": 1.0} for s in range(1, 9)]).add({"step": 9}))
