"""Prompts and verdicts: what is asked for, what satisfies it, and which edits lead there."""

from __future__ import annotations

import numpy as np
import pytest

from r3_rl.errors import InputError
from r3_rl.worlds.shapes.board import NINE
from r3_rl.worlds.shapes.data import corrupt, wrong_scene
from r3_rl.worlds.shapes.judging import edits_needed, judge, useful_edits
from r3_rl.worlds.shapes.prompts import (
    TAGS,
    Group,
    all_prompts,
    is_held_out,
    make_prompt,
    prompt_pool,
    request_of,
    sample_prompts,
    sample_scene,
)
from r3_rl.worlds.shapes.scene import Obj, apply_edit, pick

RED_CIRCLE, BLUE_SQUARE = Obj("red", "circle", 0, 0), Obj("blue", "square", 1, 2)
POSITION = make_prompt("position", [Group("circle", 1, "red"), Group("square", 1, "blue")], "left of")
TWO = make_prompt("color_attr", [Group("circle", 1, "red"), Group("square", 1, "blue")])


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def test_columns_follow_genevals_schema():
    assert POSITION.text == "a red circle left of a blue square"
    assert POSITION.columns == {
        "tag": "position",
        "include": [
            {"class": "square", "count": 1, "color": "blue"},
            {"class": "circle", "count": 1, "color": "red", "position": ["left of", 0]},
        ],
        "exclude": [],
        "prompt": POSITION.text,
    }
    assert request_of(POSITION.columns).groups == (Group("circle", 1, "red"), Group("square", 1, "blue"))


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        ("single_object", "a circle"),
        ("two_object", "a circle and a square"),
        ("counting", "three circles"),
        ("colors", "a red circle"),
        ("color_attr", "a red circle and a blue square"),
        ("position", "a red circle left of a blue square"),
        ("count_color", "three red circles"),
        ("multi_count", "two circles and three squares"),
        ("multi_color_count", "two red circles and one blue square"),
    ],
)
def test_kinds_read_as_they_should(tag, text):
    assert text in {p.text for p in all_prompts(tag)}


@pytest.mark.parametrize("tag", TAGS)
def test_no_prompt_is_in_both_splits(tag):
    train, held_out = (set(p.text for p in prompt_pool(tag, split)) for split in ("train", "held_out"))
    assert all(p.columns["tag"] == tag for p in prompt_pool(tag, "train"))
    if NINE.kinds[tag].always_trained:
        assert train == held_out
    else:
        assert not train & held_out
        assert 0.1 < len(held_out) / len(train | held_out) < 0.3


def test_turning_a_prompt_around_does_not_change_its_split():
    for p in prompt_pool("color_attr", "held_out"):
        assert is_held_out(make_prompt("color_attr", request_of(p.columns).groups[::-1]))
    for p in prompt_pool("position", "held_out"):
        request = request_of(p.columns)
        mirrored = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
        assert is_held_out(make_prompt("position", request.groups[::-1], mirrored[request.relations[0]]))


def test_draws_are_reproducible_and_keep_to_kinds_weights_and_split():
    weights = {"position": 1.0, "counting": 3.0}
    drawn = sample_prompts(2000, split="held_out", tags=weights, seed=5)
    assert drawn == sample_prompts(2000, split="held_out", tags=weights, seed=5)
    assert all(is_held_out(p) for p in drawn)
    assert 0.70 < np.mean([p.columns["tag"] == "counting" for p in drawn]) < 0.80
    with pytest.raises(InputError, match="no prompts of the kind"):
        sample_prompts(1, tags=["colour"], seed=0)
    with pytest.raises(InputError, match="use 'train' or 'held_out'"):
        sample_prompts(1, split="test", seed=0)


@pytest.mark.parametrize("tag", TAGS)
def test_scenes_satisfy_their_prompt_and_edits_lead_from_wrong_to_right(tag, rng):
    for prompt in sample_prompts(60, tags=[tag], seed=rng):
        scene = sample_scene(prompt, rng)
        assert judge(scene, prompt).strict and useful_edits(scene, prompt, rng) == []
        scene = wrong_scene(scene, prompt, rng, rough_share=0.3)
        needed = edits_needed(scene, prompt)
        assert needed > 0 and not judge(scene, prompt).strict
        while needed:
            edits = useful_edits(scene, prompt, rng)
            lengths = [edits_needed(apply_edit(scene, edit), prompt) for edit in edits]
            assert edits and max(lengths) < needed, (prompt.text, scene, edits)
            scene = apply_edit(scene, pick(edits, rng))
            needed = edits_needed(scene, prompt)


@pytest.mark.parametrize(
    ("scene", "needed", "words"),
    [
        ((RED_CIRCLE, BLUE_SQUARE), 0, "correct"),
        ((RED_CIRCLE,), 1, "expected blue square>=1, found 0"),
        ((RED_CIRCLE, BLUE_SQUARE._replace(color="red")), 1, "expected blue square>=1, found 0"),
        ((RED_CIRCLE, BLUE_SQUARE._replace(color="red", shape="cross")), 2, "expected blue square>=1, found 0"),
        ((RED_CIRCLE, BLUE_SQUARE, Obj("red", "cross", 2, 2)), 1, "expected 2 objects in all, found 3"),
        ((RED_CIRCLE, BLUE_SQUARE._replace(rough="faded")), 1, "malformed blue square middle right"),
        ((), 2, "expected red circle>=1, found 0"),
    ],
)
def test_verdicts_count_edits_and_say_why(scene, needed, words):
    judgement = judge(scene, TWO)
    assert edits_needed(scene, TWO) == needed
    assert judgement.strict == (needed == 0)
    assert judgement.partial == max(0.0, 1 - needed / 2)
    assert words in judgement.words


@pytest.mark.parametrize(
    ("circle", "square", "needed"),
    [((0, 0), (1, 2), 0), ((0, 1), (1, 1), 1), ((0, 2), (1, 2), 1), ((0, 2), (1, 1), 1), ((0, 2), (1, 0), 2)],
)
def test_a_relation_asks_for_another_column_in_that_direction(circle, square, needed):
    scene = (Obj("red", "circle", *circle), Obj("blue", "square", *square))
    assert edits_needed(scene, POSITION) == needed
    if needed:
        assert "expected red circle left of blue square, found" in judge(scene, POSITION).words


def test_a_prompt_constrains_only_what_it_says(rng):
    prompt = make_prompt("counting", [Group("circle", 3)])
    colors = {o.color for _ in range(40) for o in sample_scene(prompt, rng)}
    assert len(colors) == 6
    assert prompt.columns["exclude"] == [{"class": "circle", "count": 4}]


def test_prompts_of_another_world_are_refused():
    with pytest.raises(InputError, match="cannot draw pink zebra"):
        judge((), {"include": [{"class": "zebra", "count": 1, "color": "pink"}]})


def test_what_a_critique_says_first_follows_a_rule():
    prompt = make_prompt("counting", [Group("circle", 2)])
    five = [Obj("red", "circle", row, col) for row, col in ((2, 2), (0, 1), (1, 0), (0, 0), (2, 0))]
    for seed in range(5):
        edits = useful_edits(five, prompt, np.random.default_rng(seed))
        assert [(e.kind, e.row, e.col) for e in edits] == [("remove", 0, 0), ("remove", 0, 1), ("remove", 1, 0)]
        assert all(e.color == "" for e in edits)
    wrong = [Obj("red", "cross", 2, 0), Obj("red", "cross", 0, 2)]
    kinds = [
        e.kind for e in useful_edits(wrong, make_prompt("counting", [Group("circle", 3)]), np.random.default_rng(0))
    ]
    assert kinds == ["turn", "turn", "add"], "additions last"


def test_a_scene_is_corrupted_as_far_as_asked(rng):
    for wanted in (1, 2, 3, 4):
        for prompt in sample_prompts(20, seed=rng):
            scene = corrupt(sample_scene(prompt, rng), prompt, rng, num_edits=1, num_wrong=wanted)
            assert edits_needed(scene, prompt) >= wanted
