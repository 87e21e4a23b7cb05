"""What any world gives by its doors: right images, near misses, wrong drafts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from r3_rl.worlds import sets
from r3_rl.worlds.base import find_world
from r3_rl.worlds.sets import right_drafts, verdicts, wrong_drafts
from r3_rl.worlds.shapes.board import NINE
from r3_rl.worlds.shapes.prompts import TAGS, is_held_out

WORLD = find_world("shapes")


@pytest.fixture(scope="module")
def pairs():
    return sets.pairs(WORLD, 200)


def test_one_side_is_right_and_the_other_one_edit_away(pairs):
    assert all(p.right.prompt is p.near_miss.prompt for p in pairs)
    assert all(WORLD.judge(p.right.scene, p.right.prompt).total == 1 for p in pairs)
    assert {WORLD.edits_needed(p.near_miss.scene, p.near_miss.prompt) for p in pairs} == {1}
    changed = [len({o[:4] for o in p.right.scene} ^ {o[:4] for o in p.near_miss.scene}) for p in pairs]
    assert set(changed) == {1, 2}, "one object more, less or other"
    assert not any(o.rough for p in pairs for o in (*p.right.scene, *p.near_miss.scene))


def test_the_images_show_the_scenes(pairs):
    for drawn in ([p.right for p in pairs], [p.near_miss for p in pairs], right_drafts(WORLD, 100, seed=1)):
        seen = WORLD.inspect(np.stack([d.image for d in drawn]))
        assert np.mean([WORLD.same(scene, d.scene) for scene, d in zip(seen, drawn, strict=True)]) > 0.99


def test_pairs_are_of_held_out_prompts_and_stay_the_same(pairs):
    prompts = [p.right.prompt for p in pairs]
    assert all(is_held_out(p) or NINE.kinds[p.columns["tag"]].always_trained for p in prompts)
    assert {p.columns["tag"] for p in prompts} == set(TAGS)
    again = sets.pairs(WORLD, 200)
    assert all(np.array_equal(a.near_miss.image, b.near_miss.image) for a, b in zip(pairs, again, strict=True))
    assert {p.right.prompt.columns["tag"] for p in sets.pairs(WORLD, 10, tags=("counting",))} == {"counting"}
    assert sets.pairs(WORLD, 0) == []


def test_wrong_drafts_are_wrong_held_out_and_fixed():
    drafts, again = wrong_drafts(WORLD, 200), wrong_drafts(WORLD, 200)
    assert [d.prompt.text for d in drafts] == [d.prompt.text for d in again]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(drafts, again, strict=True))
    assert all(is_held_out(d.prompt) or NINE.kinds[d.prompt.columns["tag"]].always_trained for d in drafts)
    assert not any(WORLD.judge(d.scene, d.prompt).total == 1 for d in drafts)
    found = verdicts(WORLD, [torch.from_numpy(d.image) for d in drafts], [d.prompt for d in drafts])
    assert np.mean([v.total == 0 for v in found]) >= 0.97
    assert any(o.malformed for d in drafts for o in d.scene)


def test_the_inspector_judges_what_is_drawn():
    rng = np.random.default_rng(0)
    prompts = WORLD.prompts(8, split="held_out", seed=1)
    images = [torch.from_numpy(i) for i in WORLD.draw([WORLD.scene(p, rng) for p in prompts])]
    assert [v.total for v in verdicts(WORLD, images, prompts)] == [1.0] * 8
    black = verdicts(WORLD, [torch.zeros(3, 36, 36)] * 8, prompts)
    assert [v.total for v in black] == [0.0] * 8 and all(v.words for v in black)


def test_wrong_drafts_of_the_training_split_are_of_the_kinds_that_are_asked_for():
    drawn = wrong_drafts(WORLD, 20, split="train", tags=("counting",), seed=5)
    assert {d.prompt.columns["tag"] for d in drawn} == {"counting"}
    assert not any(is_held_out(d.prompt) for d in drawn)
    assert verdicts(WORLD, [], []) == []
