"""Velocities, guided drawings and stochastic rollouts against the recorded set."""

from __future__ import annotations

import pytest

from tests.policy import golden_drawing as checks
from tests.policy import golden_policy
from tests.policy.golden_params import assert_fits, found
from tests.policy.golden_set import model

DRAWN = found(lambda: checks.cases("03_generate_t2i"), "drawings")
EDITED = found(lambda: checks.cases("04_generate_edit"), "edits")
MODES = found(checks.rollout_modes, "rollouts")


def test_velocity():
    assert_fits(checks.velocity(model()))


def test_edit_velocity():
    assert_fits(checks.edit_velocity(model()))


@pytest.mark.parametrize("case", DRAWN)
def test_drawing(case):
    assert_fits(checks.generate(model(), "03_generate_t2i", case))


@pytest.mark.parametrize("case", EDITED)
def test_edit(case):
    assert_fits(checks.generate(model(), "04_generate_edit", case))


@pytest.mark.parametrize("case", DRAWN)
def test_the_sampler_draws_the_same_image(case):
    assert_fits(golden_policy.drawn(model(), "03_generate_t2i", case))


@pytest.mark.parametrize("case", EDITED)
def test_the_sampler_edits_to_the_same_image(case):
    assert_fits(golden_policy.drawn(model(), "04_generate_edit", case))


def test_two_prompts_in_one_batch():
    assert_fits(checks.batched_rollout(model()))


def test_two_prompts_in_one_batch_of_the_sampler():
    assert_fits(golden_policy.batched(model()))


@pytest.mark.parametrize("mode", MODES)
def test_mixed_rollout(mode):
    assert_fits(checks.mixed_rollout(model(), mode))


@pytest.mark.parametrize("mode", MODES)
def test_the_sampler_and_the_replay_score_the_same(mode):
    assert_fits(golden_policy.mixed(model(), mode))
