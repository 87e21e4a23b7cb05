"""A progressive run: critiques alone at first, then more and more often with the refinement they ask for."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.training.test_trainer import make


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
