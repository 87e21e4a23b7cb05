import io

import pytest
from rich.console import Console

from r3_rl.observe.progress import RunProgress, duration

METRICS = {"refine/draft_score": 0.5, "refine/gain_mean": 0.125, "refine/frac_stopped": 0.4}


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def show(*, terminal, seconds=2.0, steps=20, resumed=0, limit_s=None):
    clock, out = Clock(), io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, color_system=None, legacy_windows=False)
    with RunProgress("shapes [r3]", total_steps=steps, console=console, clock=clock) as progress:
        clock.now += 50  # loading a checkpoint
        progress.begin(resumed, limit_s=limit_s)
        for step in range(resumed + 1, steps + 1):
            clock.now += seconds
            progress.update(step, METRICS if step % 2 else {"reward": 0.75})
            if step == 10:
                progress.note("gain rising [because] drafts get worse")
    return out.getvalue()


def test_plain_lines_off_a_terminal_come_every_ten_seconds_and_at_the_end():
    lines = show(terminal=False).splitlines()
    assert [line.split("step ")[1].split()[0] for line in lines if "step " in line] == [
        "1/20", "6/20", "11/20", "16/20", "20/20",
    ]  # fmt: skip
    assert "\x1b" not in "".join(lines)
    assert lines[1].startswith("shapes [r3]  step 6/20  draft 0.500  gain +0.125  stopped 40%  reward 0.750")
    assert lines[1].endswith("s/step 2.00  left 28 s")
    assert "gain rising [because] drafts get worse" in lines


def test_a_terminal_shows_the_same_numbers_in_place():
    shown = show(terminal=True)
    for words in ("shapes [r3]", "20/20", "draft 0.500", "gain +0.125", "stopped 40%", "s/step 2.00", "[because]"):
        assert words in shown, words
    assert "\x1b[" in shown


def test_a_resumed_run_counts_only_its_own_seconds():
    lines = show(terminal=False, resumed=10).splitlines()
    assert "step 11/20" in lines[0] and "s/step 2.00  left 18 s" in lines[0]


def test_a_run_that_its_clock_ends_says_the_time_until_then():
    lines = show(terminal=False, limit_s=25.0).splitlines()
    assert "step 6/20" in lines[1] and lines[1].endswith("left 13 s")


def test_a_value_that_is_not_finite_is_said():
    out = io.StringIO()
    with RunProgress("r", total_steps=1, console=Console(file=out)) as progress:
        progress.update(1, {"reward": float("nan")})
    assert "reward not finite" in out.getvalue()


@pytest.mark.parametrize(("seconds", "words"), [(59.6, "1 min 00 s"), (3599, "59 min 59 s"), (3600, "1 h 00 min")])
def test_durations_round_before_they_are_split(seconds, words):
    assert duration(seconds) == words
