"""Pretraining data: reproducible, wrong exactly as often as said, and right in what it teaches."""

from __future__ import annotations

import numpy as np
import pytest

from r3_rl.worlds.shapes.data import ShapesStream
from r3_rl.worlds.shapes.inspector import inspect
from r3_rl.worlds.shapes.judging import edits_needed, judge
from r3_rl.worlds.shapes.language import STOP, apply_instruction, parse_instruction, parse_listing, parse_plan
from r3_rl.worlds.shapes.prompts import TAGS, all_prompts, is_held_out
from r3_rl.worlds.shapes.questions import QUESTION_KINDS, ask
from r3_rl.worlds.shapes.scene import Obj, random_scene

PROMPT_OF = {p.text: p for tag in TAGS for p in all_prompts(tag)}


def same(left, right):
    return all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
        for x, y in zip(left, right, strict=True)
        for a, b in zip(fields_of(x), fields_of(y), strict=True)
    )


def fields_of(sample):
    return tuple(sample) if isinstance(sample, tuple) else tuple(vars(sample).values())


@pytest.mark.parametrize("kind", ["text_to_image", "edits", "critiques", "questions"])
def test_a_seed_gives_the_same_samples(kind):
    first, second, other = (getattr(ShapesStream(seed=seed), kind)(20) for seed in (1, 1, 2))
    assert same(first, second) and not same(first, other)
    assert all(a.dtype == np.float32 for a in fields_of(first[0]) if isinstance(a, np.ndarray))


def test_text_to_image_is_wrong_as_often_as_it_says():
    samples = ShapesStream(seed=4).text_to_image(800, plan_noise=0.25, image_noise=0.1)
    plans_right = [judge(parse_plan(s.plan), PROMPT_OF[s.prompt]).strict for s in samples]
    seen = inspect(np.stack([s.image for s in samples]))
    departs = [{o[:4] for o in i} != {o[:4] for o in parse_plan(s.plan)} for i, s in zip(seen, samples, strict=True)]
    assert 0.70 < np.mean(plans_right) < 0.80
    assert 0.06 < np.mean(departs) < 0.14
    clean = ShapesStream(seed=4).text_to_image(200, plan_noise=0.0, image_noise=0.0, tags=["position"])
    assert all(judge(parse_plan(s.plan), PROMPT_OF[s.prompt]).strict for s in clean)


def test_plans_list_objects_in_the_order_of_the_prompt():
    for s in ShapesStream(seed=5).text_to_image(100, plan_noise=0.0, tags=["color_attr", "position"]):
        words = s.prompt.split()
        first = parse_plan(s.plan)[0]
        assert [first.color, first.shape] == words[1:3]


def test_training_prompts_are_never_held_out_ones():
    stream = ShapesStream(seed=6)
    for sample in stream.text_to_image(400) + stream.critiques(400):
        assert not is_held_out(PROMPT_OF[sample.prompt])


def test_targets_differ_from_sources_in_the_named_cells_only():
    for s in ShapesStream(seed=7).edits(300, max_noise=0.0):
        edit = parse_instruction(s.instruction)
        cells = {(edit.row, edit.col)} | ({(edit.to_row, edit.to_col)} if edit.kind == "move" else set())
        # Blur keeps within a pixel of a cell; look at the cells' insides and allow for it.
        change = np.abs(s.source - s.target).reshape(3, 3, 12, 3, 12).max(axis=(0, 2, 4))
        touched = {(int(r), int(c)) for r, c in np.argwhere(change > 0.45)}
        assert touched <= cells
        assert any(change[cell] > 0.05 for cell in cells)


def test_critiques_list_what_is_there_and_edit_what_is_wrong():
    samples = ShapesStream(seed=8).critiques(600)
    stops = 0
    for s in samples:
        prompt, seen = PROMPT_OF[s.prompt], tuple(parse_listing(s.text))
        said = s.text.split(" </think> ")[1]
        needed = edits_needed(seen, prompt)
        if said == STOP:
            stops += 1
            assert needed == 0
        else:
            assert edits_needed(apply_instruction(seen, said), prompt) < needed
    assert 0.44 < stops / len(samples) < 0.56
    assert any("rough" in s.text for s in samples)


def test_errors_on_purpose_come_as_often_as_they_are_asked_for():
    touched = []
    for s in ShapesStream(seed=7).edits(400, max_noise=0.0, rough_share=0.0, departing_share=0.3):
        edit = parse_instruction(s.instruction)
        cells = {(edit.row, edit.col)} | ({(edit.to_row, edit.to_col)} if edit.kind == "move" else set())
        change = np.abs(s.source - s.target).reshape(3, 3, 12, 3, 12).max(axis=(0, 2, 4))
        touched.append({(int(r), int(c)) for r, c in np.argwhere(change > 0.45)} <= cells)
    # now and then the further edit falls on the cell of the first
    assert 0.66 < np.mean(touched) < 0.82
    useless, wrong = 0, 0
    for s in ShapesStream(seed=8).critiques(600, useless_share=0.3):
        prompt, seen = PROMPT_OF[s.prompt], tuple(parse_listing(s.text))
        if needed := edits_needed(seen, prompt):
            wrong += 1
            after = apply_instruction(seen, s.text.split(" </think> ")[1])
            useless += after is None or edits_needed(after, prompt) >= needed
        else:
            assert s.text.endswith(STOP), "right images are never edited"
    assert 0.2 < useless / wrong < 0.34


def test_answers_are_balanced_and_right():
    rng = np.random.default_rng(9)
    answers = {kind: [] for kind in QUESTION_KINDS}
    for _ in range(1500):
        question = ask(random_scene(4, rng), QUESTION_KINDS[int(rng.random() * 5)], rng)
        answers[question.kind].append(question.answer)
    for kind in ("exists", "relation"):
        assert 0.35 < np.mean([a == "yes" for a in answers[kind]]) < 0.65
    scene = (Obj("red", "circle", 0, 0), Obj("red", "square", 0, 2))
    asked = {q.text: q.answer for q in (ask(scene, kind, rng) for _ in range(200) for kind in QUESTION_KINDS)}
    assert asked["how many red"] == "two"
    assert asked["what shape is top right"] == "square"
    assert asked["what color is the circle top left"] == "red"
    assert asked["is the red circle left of the red square"] == "yes"
    assert asked["is there a red circle"] == "yes"


def test_questions_have_the_answer_at_the_end_of_their_reply():
    asked = ShapesStream(seed=1).questions(20, kinds=["count"])
    assert all(q.words.startswith("how many") and q.text == f"{q.words} ?" for q in asked)
    assert all(q.reply.endswith(f"</think> {q.answer}") for q in asked)
