"""A progressive run: critiques alone at first, then more and more often with the refinement they ask for."""

from __future__ import annotations

from itertools import pairwise

import pytest

from r3_rl.balance.progressive import Progressive
from tests.training.test_trainer import assert_equal_weights, make, run, untimed, weights


def phases(trainer, num_steps):
    """What every second step of a run of so many steps was, by its number."""
    found = {}
    trainer.on_collected = lambda step, collected: found.setdefault(step, collected.phase)
    for step in range(num_steps):
        trainer.roll_out(step)
    assert all(found[step] == "reason" for step in range(0, num_steps, 2))
    return [found[step] for step in range(1, num_steps, 2)]


def test_critiques_alone_come_first_and_refinements_last(tmp_path):
    trainer = make(tmp_path, schedule="progressive", max_steps=24, apart_fraction=0.25, ramp_fraction=0.5)
    found = phases(trainer, 24)
    assert set(found[:3]) == {"critique"} and set(found[-3:]) == {"refine"}
    again = make(tmp_path / "again", schedule="progressive", max_steps=24, apart_fraction=0.25, ramp_fraction=0.5)
    assert phases(again, 24) == found


@pytest.mark.parametrize(("apart", "phase"), [(1.0, "critique"), (0.0, "refine")])
def test_its_ends_are_cotrain_and_tree(tmp_path, apart, phase):
    trainer = make(tmp_path, schedule="progressive", max_steps=6, apart_fraction=apart, ramp_fraction=0.0)
    assert phases(trainer, 6) == [phase] * 3


def test_the_share_rises_over_the_ramp(tmp_path):
    """Of 200 seeds at each time of the run."""
    schedule = make(tmp_path, schedule="progressive", apart_fraction=0.2, ramp_fraction=0.6).schedule
    shares = [
        sum(schedule._phase(1, seed, done) == "refine" for seed in range(200)) / 200 for done in (0.1, 0.35, 0.65, 0.9)
    ]
    assert shares[0] == 0 and shares[-1] == 1
    assert all(a < b for a, b in pairwise(shares))
    assert shares[1] == pytest.approx(0.25, abs=0.1) and shares[2] == pytest.approx(0.75, abs=0.1)


def rates(trainer):
    """The learning rate of every step, without the steps."""
    trainer.prepare()
    found = []
    for _ in range(trainer.args.max_steps):
        found.append(trainer.learner.scheduler.get_last_lr()[0])
        trainer.learner.optimizer.step()
        trainer.learner.scheduler.step()
    return found


def test_the_rate_s_course_begins_anew_with_the_ramp(tmp_path):
    options = {"schedule": "progressive", "max_steps": 8, "apart_fraction": 0.5, "ramp_fraction": 0.25}
    falling = {"lr_scheduler_type": "linear", "warmup_steps": 0, "learning_rate": 1.0, **options}
    assert rates(make(tmp_path, **falling)) == pytest.approx([1, 0.75, 0.5, 0.25] * 2)
    assert rates(make(tmp_path, restart_rate=False, **falling)) == pytest.approx([1 - i / 8 for i in range(8)])
    warming = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2, "learning_rate": 1.0, **options}
    assert rates(make(tmp_path, **warming)) == pytest.approx([0, 0.5, 1, 1] * 2)
    tree = {**falling, "schedule": "tree"}
    assert rates(make(tmp_path, **tree)) == pytest.approx([1 - i / 8 for i in range(8)]), "it has no phases"


PLATEAU = {
    "schedule": "progressive", "apart_fraction": 0.75, "ramp_fraction": 0.1, "plateau_steps": 1, "max_steps": 12,
    "plateau_gain": 1.0, "lr_scheduler_type": "linear", "learning_rate": 1e-3, "save_steps": 2,
    "warmup_steps": 0,
}  # fmt: skip


def test_a_plateau_ends_the_apart_phase_early_and_a_resumed_run_knows(tmp_path):
    """A gain of less than everything is none, so two values of each kind are a plateau: seen after four steps."""
    whole = make(tmp_path / "whole", **PLATEAU)
    seen = []
    whole.on_collected = lambda step, collected: seen.append(collected.phase)
    rows = untimed(run(whole))
    assert whole.schedule.progressive.began == pytest.approx(5 / 12)
    assert seen[:4] == ["reason", "critique"] * 2 and "critique" not in seen[7:]
    lrs = [row["learning_rate"] for row in rows]
    assert lrs[:6] == pytest.approx([1e-3 * (1 - i / 9) for i in range(5)] + [1e-3]), "made for three quarters of 12"
    again = make(tmp_path / "again", **PLATEAU)
    resumed = untimed(run(again, resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6")))
    assert resumed[-6:] == rows[6:] and again.schedule.progressive.began == whole.schedule.progressive.began
    assert_equal_weights(weights(whole), weights(again))
    early = make(tmp_path / "early", **PLATEAU)
    resumed = untimed(run(early, resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2")))
    assert resumed[-10:] == rows[2:], "what was seen before the checkpoint counts"


def test_what_still_gets_better_is_no_plateau():
    run_of = Progressive(apart=0.9, ramp=0.1, plateau_steps=2, plateau_gain=0.01)
    for step in range(8):
        run_of.observe(step / 10, {"reason": 0.5 + 0.1 * step})
        run_of.observe(step / 10, {"critique": 0.5})
    assert run_of.began is None and run_of.share(0.85) == 0
    for step in range(8, 20):
        run_of.observe(step / 30, {"reason": 1.0})
    assert run_of.began == pytest.approx(9 / 30), (
        "two values below the two before, and critiques have not risen for long"
    )
    silent = Progressive(apart=0.5, ramp=0.0, plateau_steps=1)
    silent.observe(0.1, {})
    assert silent.began is None and silent.share(0.51) == 1, "at its latest it begins all the same"
