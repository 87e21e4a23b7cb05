"""Guards in the trainer: what they say, and how a run ends that one of them stops."""

from __future__ import annotations

import pytest

from r3_rl.errors import InputError
from r3_rl.scoring.panel import Panel, ScorerSpec
from r3_rl.training.config import R3Config
from r3_rl.training.manifest import checked, numbered
from tests.training.test_trainer import make, red, run


def sometimes(images, **columns):
    return [None if i == 0 else value for i, value in enumerate(red(images))]


def panel():
    return Panel([ScorerSpec(name="sometimes", scorer=sometimes)], max_failed_fraction=0.5)


def test_a_run_is_stopped_when_its_rollouts_have_had_all_their_updates(tmp_path):
    """A checkpoint between two of them could not be resumed bit for bit."""
    options = {"schedule": "draft_only", "max_steps": 9, "num_iterations": 2, "save_steps": 1000}
    trainer = make(tmp_path, panel(), guards={"missing_scores": "stop"}, **options)
    said = []
    trainer.guards.say = said.append
    run(trainer)
    assert trainer.state.global_step == 2 and checked(tmp_path / "checkpoint-2").step == 2
    assert trainer.guards.stopped is not None and trainer.guards.stopped.step == 1
    assert [line[:47] for line in said] == ["guard missing_scores stops the run at step 1: s"]


def test_a_warning_stops_nothing(tmp_path):
    trainer = make(tmp_path, panel(), schedule="draft_only", max_steps=2)
    run(trainer)
    assert trainer.state.global_step == 2 and trainer.guards.stopped is None and not numbered(tmp_path / "none")


def test_a_learning_rate_that_changes_nothing_ends_the_run(tmp_path):
    rates = {"learning_rate": 1e-30, "schedule": "draft_only", "max_steps": 12}
    trainer = make(tmp_path, **rates)
    rows = run(trainer)
    assert trainer.guards.stopped is not None and trainer.guards.stopped.finding.name == "no_change"
    assert len(rows) == 10 and all(0 < row["weights/step_size"] < 1e-25 for row in rows)
    moving = make(tmp_path / "b", schedule="draft_only")
    assert all(1e-3 < row["weights/step_size"] < 1 for row in run(moving)) and moving.guards.stopped is None


@pytest.mark.parametrize(
    ("guards", "said"),
    [
        ({"deadpolicy": "warn"}, r"R3Config guards.deadpolicy='warn': .*; known: not_finite, equal_noise, dead_policy"),
        ({"dead_policy": "maybe"}, "R3Config guards.dead_policy='maybe': "),
        ("off", "R3Config "),
    ],
)
def test_a_guard_or_an_action_that_is_none_is_refused(guards, said):
    with pytest.raises(InputError, match=said):
        R3Config("out", guards=guards)
