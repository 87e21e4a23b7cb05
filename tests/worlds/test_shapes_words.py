"""Words of the shapes world: what is written can be read back, and nothing else can."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer

from r3_rl.worlds.shapes.board import NINE
from r3_rl.worlds.shapes.data import ShapesStream
from r3_rl.worlds.shapes.language import (
    STOP,
    apply_instruction,
    build_tokenizer,
    instruction_text,
    parse_instruction,
    parse_listing,
    parse_plan,
    plan_text,
    vocabulary,
)
from r3_rl.worlds.shapes.prompts import TAGS, all_prompts
from r3_rl.worlds.shapes.scene import Obj, apply_edit, random_edit, random_scene, roughen


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_every_edit_survives_its_words(rng):
    kinds = set()
    for _ in range(300):
        scene = random_scene(int(rng.random() * 10), rng)
        edit = random_edit(scene, rng)
        kinds.add(edit.kind)
        assert parse_instruction(instruction_text(edit)) == edit
        assert apply_edit(scene, edit) == apply_instruction(scene, instruction_text(edit)) is not None
    assert kinds == {"add", "change", "turn", "remove", "move"}


def test_an_edit_leaves_all_other_objects_as_they_were(rng):
    for _ in range(200):
        scene = random_scene(1 + int(rng.random() * 8), rng)
        edit = random_edit(scene, rng)
        after = apply_edit(scene, edit, rng)
        others = [o for o in scene if o.cell != (edit.row, edit.col)]
        assert [o for o in after if o in scene] == others
        if edit.kind in ("change", "turn"):
            assert after != scene and len(after) == len(scene)


@pytest.mark.parametrize(
    "instruction",
    [
        "",
        "no further edit needed",
        "add the red circle top left",
        "add a circle top center",
        "remove the red circle",
        "remove the red circle top left now",
        "change the circle top left to square",
        "turn the circle top left into square",
        "move the red circle top left to top left",
        "move the red circle top left to left top",
        "remove the red circle bottom right",
        "remove the blue circle top left",
        "change the square top left to blue",
        "add a red circle top left",
    ],
)
def test_words_that_are_no_instruction_for_the_scene_do_nothing(instruction):
    assert apply_instruction((Obj("red", "circle", 0, 0),), instruction) is None


def test_a_malformed_object_is_repaired_by_naming_its_cell(rng):
    scene = roughen((Obj("red", "circle", 0, 0, 0.5, -0.5, 4.2),), 0, rng)
    after = apply_instruction(scene, "turn the square top left into a circle")
    assert after == (Obj("red", "circle", 0, 0, 0.5, -0.5, 4.2),)


def test_plans_are_read_back(rng):
    for n in range(10):
        scene = random_scene(n, rng)
        assert [o[:4] for o in parse_plan(plan_text(scene))] == [o[:4] for o in scene]


@pytest.mark.parametrize(
    "text",
    [
        "red circle top left",
        "<think> red circle top </think>",
        "<think> </think>",
        "<think> circle red top left </think>",
        "<think> red circle top left </think> draw",
        "<think> red circle top left blue cross top left </think>",
        "<think> red circle top left",
    ],
)
def test_a_text_that_is_no_plan_is_none(text):
    assert parse_plan(text) is None


def test_a_listing_says_what_is_malformed():
    seen = parse_listing(f"<think> rough red circle top left blue cross bottom right </think> {STOP}")
    assert [(o.color, o.malformed) for o in seen] == [("red", True), ("blue", False)]
    assert parse_listing("<think> red circle top left") is None
    assert parse_listing("rough") is None


def test_the_tokenizer_knows_every_word_the_world_says(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    stream = ShapesStream(seed=3)
    texts = [p.text for tag in TAGS for p in all_prompts(tag)]
    texts += [sample.plan for sample in stream.text_to_image(300)]
    texts += [sample.instruction for sample in stream.edits(300)]
    texts += [f"check {sample.prompt} {sample.text}" for sample in stream.critiques(300)]
    texts += [f"{sample.text} {sample.reply}" for sample in stream.questions(300)]
    unknown = tokenizer.token_to_id("<unk>")
    for text in texts:
        ids = tokenizer.encode(text).ids
        assert unknown not in ids, text
        assert tokenizer.decode(ids) == text
    assert tokenizer.get_vocab_size() == len(vocabulary(NINE)) + 6


def test_the_tokenizer_reads_as_people_write():
    tokenizer = build_tokenizer()
    encoded = tokenizer.encode("<|im_start|>A red circle, a zebra?<|im_end|>")
    assert encoded.tokens == ["<|im_start|>", "a", "red", "circle", ",", "a", "<unk>", "?", "<|im_end|>"]
    assert tokenizer.decode(encoded.ids) == "a red circle , a ?"
