"""Plans, painter, instructions: which of them is to blame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from r3_rl.evaluate import measured
from r3_rl.evaluate.painting import (
    held_out_loop,
    held_out_rights,
    measure_edits,
    measure_instructions,
    measure_true_plans,
    plan_and_painter,
    plan_is_right,
    roughness,
)
from r3_rl.evaluate.reflection import Refined
from r3_rl.modalities import TextPiece
from r3_rl.worlds.base import find_world
from r3_rl.worlds.sets import wrong_drafts
from r3_rl.worlds.shapes.drawing import render
from r3_rl.worlds.shapes.judging import useful_edits
from r3_rl.worlds.shapes.language import apply_instruction, critique_text, parse_plan, plan_text
from r3_rl.worlds.shapes.prompts import Group, make_prompt, sample_prompts
from r3_rl.worlds.shapes.scene import Edit, Obj, free_cells
from tests.evaluate.scripted import BROKEN, STOP, Scripted, critique, settings, trajectory

WORLD = find_world("shapes")
TWO_CIRCLES = make_prompt("counting", [Group("circle", 2)])
LEFT_OF = make_prompt("position", [Group("circle", 1, "red"), Group("cross", 1, "blue")], "left of")


@pytest.mark.parametrize(
    ("prompt", "plan", "is_right"),
    [
        (TWO_CIRCLES, "<think> red circle top left blue circle bottom right </think>", True),
        (TWO_CIRCLES, "<think> red circle top left </think>", False),
        (TWO_CIRCLES, "<think> red circle top left blue circle top left </think>", False),
        (TWO_CIRCLES, "<think> red circle top left blue circle bottom right", False),
        (TWO_CIRCLES, "<think> red circle top left blue circle bottom right </think> and more", False),
        (TWO_CIRCLES, "<think> red circle top left blue circle top right red cross middle left </think>", False),
        (LEFT_OF, "<think> red circle top left blue cross top right </think>", True),
        (LEFT_OF, "<think> red circle top right blue cross top left </think>", False),
        (LEFT_OF, "", False),
    ],
)
def test_a_plan_is_right_if_its_words_satisfy_the_prompt(prompt, plan, is_right):
    assert plan_is_right(WORLD, plan, prompt) is is_right


def test_an_image_is_asked_for_only_where_the_plan_is_right():
    good, bad = "<think> red circle top left blue circle bottom right </think>", "<think> red circle top left </think>"
    walked = [
        trajectory(1.0, plan=good, prompt=TWO_CIRCLES),
        trajectory(0.5, plan=good, prompt=TWO_CIRCLES),
        trajectory(0.0, plan=bad, prompt=TWO_CIRCLES),
        trajectory(1.0, plan=bad, prompt=TWO_CIRCLES),
    ]
    assert plan_and_painter(WORLD, walked) == {
        "plan_right": [1.0, 1.0, 0.0, 0.0], "image_right_given_plan": [1.0, 0.0]
    }  # fmt: skip
    only_bad = plan_and_painter(WORLD, walked[2:])
    assert only_bad == {"plan_right": [0.0, 0.0], "image_right_given_plan": []}, "no right plan, no figure"
    assert plan_and_painter(WORLD, [trajectory(1.0)]) == {"plan_right": [], "image_right_given_plan": []}, (
        "plans are off"
    )


def test_true_plans_are_given_as_text_and_the_image_is_judged(monkeypatch):
    monkeypatch.setattr(measured, "CHUNK", 2)
    prompts = sample_prompts(4, split="held_out", seed=5)
    blank = torch.zeros(3, 36, 36)
    policy = Scripted(images=[blank] * 4)
    nothing = {"true_plan_drawn": [0.0] * 4, "held_out_true_plan": [], "true_plan_roughness": []}
    assert measure_true_plans(WORLD, policy, prompts, settings(), seed=3) == nothing
    for context, prompt in zip(policy.drawn_from, prompts, strict=True):
        words, plan = (piece.text for piece in context if isinstance(piece, TextPiece))
        assert words == prompt.text and plan_is_right(WORLD, plan, prompt)
    plans = [parse_plan(context[-1].text) for context in policy.drawn_from]
    again = Scripted(images=[torch.from_numpy(i) for i in render([tuple(p) for p in plans])])
    assert measure_true_plans(WORLD, again, prompts, settings(), seed=3)["true_plan_drawn"] == [1.0] * 4
    assert again.drawn_from[0][-1].text == policy.drawn_from[0][-1].text, "the same plans before and after"
    assert policy.asked == [], "no text is written"
    assert measure_true_plans(WORLD, policy, prompts, replace(settings(), plan=None), seed=3) == {}


def test_the_held_out_inspector_judges_the_same_images_by_itself():
    world, rng = find_world("mosaic"), np.random.default_rng(4)
    prompts = world.prompts(8, split="held_out", seed=4)
    scenes = [world.scene(prompt, rng) for prompt in prompts]
    images = [torch.from_numpy(image) for image in world.draw(scenes)]
    assert held_out_rights(world, images, prompts) == [1.0] * 8
    others = held_out_rights(world, images, prompts[1:] + prompts[:1])
    assert others == [
        float(world.edits_needed(s, p) == 0) for s, p in zip(scenes, [*prompts[1:], prompts[0]], strict=True)
    ]
    assert 0.0 in others
    assert held_out_rights(world, [], []) == [] == held_out_rights(WORLD, images, prompts), "the small board has none"


def test_first_and_last_images_of_the_loop_are_judged_again():
    world, rng = find_world("mosaic"), np.random.default_rng(4)
    (prompt,) = world.prompts(1, split="held_out", seed=5)
    right = torch.from_numpy(world.draw([world.scene(prompt, rng)])[0])
    one = trajectory(0.0, 1.0, prompt=prompt)
    blank, good = (
        replace(r, image=replace(r.image, image=image))
        for r, image in zip(one.rounds, (torch.zeros_like(right), right), strict=True)
    )
    found = held_out_loop(world, [replace(one, rounds=(blank, good))])
    assert found == {"held_out_draft": [0.0], "held_out_final": [1.0]}


def test_roughness_is_the_distance_to_what_is_seen_not_to_what_was_asked_for():
    world, rng = find_world("mosaic"), np.random.default_rng(4)
    scenes = [world.scene(prompt, rng) for prompt in world.prompts(4, split="held_out", seed=4)]
    clean = world.draw(scenes)
    noise = rng.normal(0, 0.02, clean.shape).astype(np.float32)
    smooth, rough = (roughness(world, [torch.from_numpy(i) for i in images]) for images in (clean, clean + noise))
    expected = 255 * 0.02 * np.sqrt(2 / np.pi)
    assert max(smooth) < 0.5
    np.testing.assert_allclose(rough, expected, rtol=0.15)


def test_edits_of_a_perfect_painter_are_all_right(monkeypatch):
    monkeypatch.setattr(measured, "CHUNK", 4)
    edits = WORLD.edits(6, seed=2)
    perfect = Scripted(images=[torch.from_numpy(e.target) for e in edits])
    assert measure_edits(WORLD, perfect, edits, settings(), seed=1) == [1.0] * 6
    unmoved = Scripted(images=[torch.from_numpy(e.source) for e in edits])
    assert measure_edits(WORLD, unmoved, edits, settings(), seed=1) == [0.0] * 6


def refined(text, scene=None):
    pixels = torch.from_numpy(render([scene])[0]) if scene is not None else None
    return Refined(critique=critique(text), image=pixels)


def test_an_instruction_is_useful_if_followed_it_leaves_less_to_do():
    drafts, rng = wrong_drafts(WORLD, 8), np.random.default_rng(0)
    useful = [critique_text(d.scene, useful_edits(d.scene, d.prompt, rng)[0]) for d in drafts]
    assert measure_instructions(WORLD, drafts, [refined(text) for text in useful])["instruction_useful"] == [1.0] * 8
    stops = measure_instructions(WORLD, drafts, [refined(STOP)] * 8)
    assert stops == {"instruction_useful": [0.0] * 8, "edit_carried_out": []}, "nothing was asked for"
    clean = [
        d for d in wrong_drafts(WORLD, 40) if d.scene and free_cells(d.scene) and not any(o.rough for o in d.scene)
    ]
    idle = [d for d in clean if d.prompt.columns["tag"] != "position"]
    for draft in idle:
        o, (row, col) = draft.scene[0], free_cells(draft.scene)[0]
        text = critique_text(draft.scene, Edit("move", "", o.shape, o.row, o.col, to_row=row, to_col=col))
        assert measure_instructions(WORLD, [draft], [refined(text)])["instruction_useful"] == [0.0], (
            "as many edits as before"
        )
    assert idle
    elsewhere = [critique_text(d.scene, Edit("remove", "red", "circle", *free_cells(d.scene)[0])) for d in drafts]
    assert measure_instructions(WORLD, drafts, [refined(text) for text in elsewhere])["instruction_useful"] == [0.0] * 8


def test_an_edit_is_carried_out_if_the_image_shows_exactly_what_it_says():
    drafts = [d for d in wrong_drafts(WORLD, 30) if d.scene and free_cells(d.scene)][:4]
    scenes = [d.scene for d in drafts]
    words = [
        f"add a red circle {plan_text((Obj('red', 'circle', *free_cells(s)[0]),)).split('circle ')[1].split(' </')[0]}"
        for s in scenes
    ]
    after = [apply_instruction(scene, text) for scene, text in zip(scenes, words, strict=True)]
    assert all(scene is not None for scene in after)
    said = [f"<think> x </think> {text}" for text in words]
    made = [
        refined(said[0], after[0]),
        refined(said[1], scenes[1]),  # nothing was changed
        refined(said[2], (*after[2], Obj("blue", "cross", *free_cells(after[2])[0]))),  # and more than was asked for
        refined("<think> x </think> remove the moon", after[3]),  # an instruction that no rule can follow
    ]
    found = measure_instructions(WORLD, drafts, made)
    assert found["edit_carried_out"] == [1.0, 0.0, 0.0]
    assert measure_instructions(WORLD, drafts, [refined(BROKEN)] * 4)["edit_carried_out"] == []


def test_malformed_objects_that_nobody_named_may_stay():
    worn = [
        d
        for d in wrong_drafts(WORLD, 200)
        if any(o.rough for o in d.scene) and len(d.scene) > 1 and free_cells(d.scene)
    ][:3]
    assert worn
    for draft in worn:
        clean = next((o for o in draft.scene if not o.rough), None)
        if clean is None:
            continue
        text = critique_text(draft.scene, Edit("remove", "", clean.shape, clean.row, clean.col))
        after = apply_instruction(draft.scene, text.split("</think> ")[1])
        assert measure_instructions(WORLD, [draft], [refined(text, after)])["edit_carried_out"] == [1.0]
