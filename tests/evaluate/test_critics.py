"""Whose words repair a draft: the world's, the policy's about another draft, or nobody's."""

from __future__ import annotations

import numpy as np
import pytest

from r3_rl.assemble import load_policy, loop_settings
from r3_rl.evaluate.critics import measure_critics, repaired
from r3_rl.evaluate.fixed_sets import fixed_drafts
from r3_rl.evaluate.loop_bench import LoopBench
from r3_rl.evaluate.reflection import FixedDrafts
from r3_rl.recipe.sampling import ModelSection
from r3_rl.recipe_io import load_recipe
from r3_rl.worlds.base import find_world
from r3_rl.worlds.sets import right_drafts, wrong_drafts

WORLD = find_world("shapes")


@pytest.fixture(scope="module")
def shipped():
    policy = load_policy(ModelSection(kind="embedded")).policy
    policy.module.requires_grad_(False)
    return policy


@pytest.fixture(scope="module")
def bench():
    return LoopBench.of(load_recipe("shapes_r3"))


@pytest.fixture(scope="module")
def settings():
    return loop_settings(load_recipe("shapes_r3").rollout).for_evaluation(0.0)


def test_the_oracle_repairs_what_a_stranger_does_not(shipped, bench, settings):
    wrong = fixed_drafts(wrong_drafts(WORLD, 32, seed=3))
    found = measure_critics(WORLD, shipped, wrong, settings, bench.judge, seed=0)
    assert {name: len(values) for name, values in found.items()} == {
        "repaired_by_oracle": 32, "repaired_by_stranger": 32,
    }  # fmt: skip
    oracle, stranger = (np.mean(found[name]) for name in ("repaired_by_oracle", "repaired_by_stranger"))
    # many are more than one edit away from their prompt: no critic repairs those in one round
    assert oracle > stranger + 0.2
    assert found == measure_critics(WORLD, shipped, wrong, settings, bench.judge, seed=0)


def test_each_draft_is_redrawn_by_its_own_instruction(shipped, bench, settings):
    drawn = wrong_drafts(WORLD, 64, seed=4)
    near = [d for d in drawn if WORLD.edits_needed(d.scene, d.prompt) == 1][:8]
    truths = [WORLD.repair(d.scene, d.prompt, np.random.default_rng(0)) for d in near]
    drafts = fixed_drafts(near)
    by_truth = repaired(shipped, drafts, truths, settings, bench.judge, seed=0)
    shifted = repaired(shipped, drafts, truths[1:] + truths[:1], settings, bench.judge, seed=0)
    assert sum(by_truth) >= 5 > sum(shifted)
    silent = ["" if i % 2 else words for i, words in enumerate(truths)]
    assert repaired(shipped, drafts, silent, settings, bench.judge, seed=0)[1::2] == [0.0] * (len(near) // 2)


def test_nothing_is_said_of_what_is_right_and_nothing_measured_without_drafts(shipped, bench, settings):
    rights = right_drafts(WORLD, 12, seed=5)
    assert [WORLD.repair(d.scene, d.prompt, np.random.default_rng(0)) for d in rights] == [None] * 12
    assert measure_critics(WORLD, shipped, FixedDrafts(), settings, bench.judge, seed=0) == {}


def test_the_controls_take_of_every_part_of_the_set():
    drafts = fixed_drafts(wrong_drafts(WORLD, 10, seed=7))
    few = drafts.spread(4)
    assert few.images == tuple(drafts.images[i] for i in (0, 2, 5, 7))
    assert few.prompts == tuple(drafts.prompts[i] for i in (0, 2, 5, 7))
    assert drafts.spread(10) is drafts and drafts.spread(0).images == ()


@pytest.mark.parametrize("name", ["shapes", "mosaic"])
def test_what_the_world_says_helps_and_can_be_followed(name):
    world = find_world(name)
    for drawn in wrong_drafts(world, 40, seed=6):
        said = world.repair(drawn.scene, drawn.prompt, np.random.default_rng(0))
        assert said is not None
        after = world.follow(drawn.scene, said)
        assert world.edits_needed(after, drawn.prompt) < world.edits_needed(drawn.scene, drawn.prompt)
