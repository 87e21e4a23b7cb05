"""Supervised training apart, then joint: what a step holds, when a plateau is seen, how the rate begins anew."""

from __future__ import annotations

import numpy as np
import pytest

from r3_rl.balance.progressive import Progressive
from r3_rl.modalities import TextPiece
from r3_rl.policy.base import Example
from r3_rl.pretraining.steps import GENERATION, UNDERSTANDING, objectives, rate, run_pretraining
from r3_rl.recipe.pretraining import PretrainSection
from tests.policy.tiny import pictures, tiny_policy


def section(**options):
    batch = {"text_to_image": 1, "edit": 0, "critique": 1, "question": 0, "plan": 0}
    given = {"steps": 8, "warmup_steps": 2, "decay_fraction": 1.0, "context_dropout": 0.0, "batch": batch, **options}
    return PretrainSection.model_validate(given)


def run_of(settings):
    return settings.build(Progressive, apart=settings.apart_fraction, ramp=settings.ramp_fraction)


def test_a_step_holds_one_kind_of_example_apart_and_both_jointly():
    rng = np.random.default_rng(0)
    assert [objectives(step, 0.0, rng) for step in (0, 1)] == [GENERATION, UNDERSTANDING]
    assert objectives(0, 1.0, rng) == GENERATION + UNDERSTANDING


def test_each_phase_has_a_warm_up_and_a_decay_of_its_own():
    settings = section(apart_fraction=0.5)
    found = [rate(step, step / 8, settings, run_of(settings)) for step in range(8)]
    assert found == pytest.approx([0.5, 0.75, 0.5, 0.25] * 2)
    once = section(apart_fraction=0.5, restart_rate=False)
    assert [rate(s, s / 8, once, run_of(once)) for s in (0, 4)] == pytest.approx([0.5, 0.5])
    joint = section()
    assert [rate(s, s / 8, joint, run_of(joint)) for s in (0, 4)] == pytest.approx([0.5, 0.5]), "it has no phases"
    flat = section(decay_fraction=0)
    assert [rate(s, s / 8, flat, run_of(flat)) for s in (0, 1, 7)] == [0.5, 1.0, 1.0], "0 never falls"


@pytest.mark.parametrize(("options", "joint"), [({}, 6), ({"plateau_steps": 1, "plateau_gain": 1.0}, 4)])
def test_a_plateau_of_the_losses_joins_them_early(options, joint):
    """Of alternating steps: with every gain counted as none it is seen after two steps of either kind."""
    held = []

    def batches(kind, count):
        held[-1].append(kind)
        (image,) = pictures(count)
        context = (TextPiece(text="a red circle"),)
        return [Example(context=context, image=image) if kind in GENERATION else Example(context=context, answer="yes")]

    settings = section(apart_fraction=0.75, muon_lr=0.001, adam_lr=1e-4, **options)
    held.append([])
    for _ in run_pretraining(tiny_policy(), batches, settings, seed=0):
        held.append([])
    apart, both = held[:joint], held[joint + 1 : 8]
    assert apart == [["text_to_image"], ["critique"]] * (joint // 2)
    assert both and all(kinds == ["text_to_image", "critique"] for kinds in both)
