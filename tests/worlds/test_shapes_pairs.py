"""Right images and near misses of the same prompts."""

from __future__ import annotations

import numpy as np
import pytest

from r3_rl.worlds.shapes.inspector import inspect, same_objects
from r3_rl.worlds.shapes.judging import edits_needed, judge
from r3_rl.worlds.shapes.pairs import fixed_pairs
from r3_rl.worlds.shapes.prompts import ALWAYS_TRAINED, TAGS, is_held_out


@pytest.fixture(scope="module")
def pairs():
    return fixed_pairs(200)


def test_one_side_is_right_and_the_other_one_edit_away(pairs):
    assert all(judge(p.right_scene, p.prompt).strict for p in pairs)
    assert {edits_needed(p.near_miss_scene, p.prompt) for p in pairs} == {1}
    changed = [len({o[:4] for o in p.right_scene} ^ {o[:4] for o in p.near_miss_scene}) for p in pairs]
    assert set(changed) == {1, 2}, "one object more, less or other"
    assert not any(o.rough for p in pairs for o in (*p.right_scene, *p.near_miss_scene))


def test_the_images_show_the_scenes(pairs):
    for images, scenes in (
        ([p.right for p in pairs], [p.right_scene for p in pairs]),
        ([p.near_miss for p in pairs], [p.near_miss_scene for p in pairs]),
    ):
        seen = inspect(np.stack(images))
        assert np.mean([same_objects(s.objects, scene) for s, scene in zip(seen, scenes, strict=True)]) > 0.99


def test_pairs_are_of_held_out_prompts_and_stay_the_same(pairs):
    assert all(is_held_out(p.prompt) for p in pairs if p.prompt.columns["tag"] not in ALWAYS_TRAINED)
    assert {p.prompt.columns["tag"] for p in pairs} == set(TAGS)
    again = fixed_pairs(200)
    assert all(np.array_equal(a.near_miss, b.near_miss) for a, b in zip(pairs, again, strict=True))
    assert {p.prompt.columns["tag"] for p in fixed_pairs(10, tags=("counting",))} == {"counting"}
    assert fixed_pairs(0) == []
