"""The mosaic world: the shapes world's code on a larger board, with sizes and relations of three."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from r3_rl.assemble import base_folder, loop_settings
from r3_rl.benches.base import Job
from r3_rl.benches.world import PainterBench
from r3_rl.errors import CheckpointError, InputError, RecipeError
from r3_rl.evaluate.base import find_bench
from r3_rl.evaluate.painting import measure_edits, measure_true_plans
from r3_rl.evaluate.reading import measure_pairs
from r3_rl.evaluate.refiner import Refiner
from r3_rl.modalities import ImagePiece, TextPiece
from r3_rl.policy.registry import backbone_of, find
from r3_rl.recipe.pretraining import PretrainSection
from r3_rl.recipe.sampling import ModelSection
from r3_rl.recipe_io import load_recipe
from r3_rl.worlds import sets
from r3_rl.worlds.base import find_world, world_speaking
from r3_rl.worlds.shapes.data import ShapesStream
from r3_rl.worlds.shapes.judging import useful_edits
from r3_rl.worlds.shapes.language import critique_text, instruction_text, parse_instruction, parse_listing
from r3_rl.worlds.shapes.mosaic.board import MOSAIC
from r3_rl.worlds.shapes.prompts import is_held_out, make_prompt, prompt_pool, request_of
from r3_rl.worlds.shapes.requests import Group
from r3_rl.worlds.shapes.scene import Obj, apply_edit, new_object, random_edit, random_scene
from r3_rl.worlds.shapes.terms import MIRROR, NUMBERS
from r3_rl.worlds.shapes.validation import share_malformed, share_right

WORLD = find_world("mosaic")
A, B, C = Group("circle", 1, "red"), Group("square", 1, "blue"), Group("cross", 1, "green")


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_prompts_reach_to_nine_objects_counts_of_five_and_relations_of_three():
    for tag in WORLD.tags:
        train, held_out = ({p.text for p in prompt_pool(tag, split, MOSAIC)} for split in ("train", "held_out"))
        assert not train & held_out and len(held_out) >= 30
        requests = [request_of(p.columns) for p in prompt_pool(tag, "train", MOSAIC)]
        assert all(sum(g.number for g in request.groups) <= 9 for request in requests)
        assert max(g.number for request in requests for g in request.groups) <= 5
    everything = [p.text for p in WORLD.prompts(400, split="train", seed=0)]
    assert any(" five small " in f" {text}" for text in everything)
    assert any(text.count(" and left of ") for text in everything)


def test_relations_of_three_are_read_back_and_mean_the_same_in_either_order():
    prompt = make_prompt("two_relations", [A, B, C], "left of", "above", board=MOSAIC)
    assert prompt.text == "a red circle left of a blue square and above a green cross"
    assert [item.get("position") for item in prompt.columns["include"]] == [None, ["left of", 0], ["below", 1]]
    request = request_of(prompt.columns)
    assert (request.groups, request.relations) == ((A, B, C), ("left of", "above"))
    for one in WORLD.prompts(60, split="train", tags=["two_relations"], seed=1):
        groups, relations = request_of(one.columns)
        swapped = make_prompt("two_relations", [groups[0], *groups[:0:-1]], *relations[::-1], board=MOSAIC)
        assert is_held_out(swapped, MOSAIC) is is_held_out(one, MOSAIC) is False
    for one in WORLD.prompts(60, split="held_out", tags=["relation"], seed=1):
        groups, (relation,) = request_of(one.columns)
        assert is_held_out(make_prompt("relation", groups[::-1], MIRROR[relation], board=MOSAIC), MOSAIC)


@pytest.mark.parametrize("tag", WORLD.tags)
def test_the_first_useful_edit_helps_and_there_is_one_whenever_something_is_wrong(tag, rng):
    for prompt in WORLD.prompts(30, split="train", tags=[tag], seed=rng):
        right, wrong = WORLD.scene(prompt, rng), WORLD.wrong_scene(prompt, rng)
        assert WORLD.judge(right, prompt).total == 1 and useful_edits(right, prompt, rng, MOSAIC) == []
        needed, judged = WORLD.edits_needed(wrong, prompt), WORLD.judge(wrong, prompt)
        assert needed >= 1 and judged.total == 0 and judged.words != "correct"
        edits = useful_edits(wrong, prompt, rng, MOSAIC)
        assert edits
        after = WORLD.follow(wrong, instruction_text(edits[0], MOSAIC))
        assert WORLD.edits_needed(after, prompt) < needed
        near = WORLD.near_miss(right, prompt, rng)
        assert WORLD.edits_needed(near, prompt) == 1


def test_objects_that_all_have_to_move_are_moved_one_by_one():
    """The circle is to stand between two others that are the wrong way round."""
    prompt = make_prompt("two_relations", [A, B, C], "left of", "right of", board=MOSAIC)
    scene = tuple(
        new_object(group.color, group.shape, cell, size="small", board=MOSAIC)
        for group, cell in zip((A, B, C), ((0, 2), (0, 1), (1, 2)), strict=True)
    )
    rng, needed = np.random.default_rng(0), WORLD.edits_needed(scene, prompt)
    assert needed == 2
    while needed:
        edit = useful_edits(scene, prompt, rng, MOSAIC)[0]
        assert edit.kind == "move"
        scene = apply_edit(scene, edit, board=MOSAIC)
        assert WORLD.edits_needed(scene, prompt) == needed - 1
        needed -= 1
    assert WORLD.judge(scene, prompt).total == 1


def test_texts_say_sizes_and_are_read_back(rng):
    kinds = set()
    for _ in range(200):
        scene = random_scene(MOSAIC.any_number(rng), rng, MOSAIC)
        edit = random_edit(scene, rng, MOSAIC)
        kinds.add(edit.kind)
        assert parse_instruction(instruction_text(edit, MOSAIC), MOSAIC) == edit
        assert WORLD.same(WORLD.read_plan(WORLD.plan_text(scene)), scene)
        assert WORLD.same(parse_listing(critique_text(scene, edit, MOSAIC), MOSAIC), scene)
        assert len(apply_edit(scene, edit, rng, MOSAIC)) - len(scene) in (-1, 0, 1)
    assert kinds == {"add", "change", "turn", "make", "remove", "move"}
    scene = (new_object("red", "circle", (1, 3), size="small", board=MOSAIC),)
    assert WORLD.plan_text(scene) == "<think> small red circle upper midright </think>"
    (large,) = WORLD.follow(scene, "make the circle upper midright large")
    assert large.size == "large" and large.radius > 4 and scene[0].radius < 3.3
    assert WORLD.follow(scene, "make the large circle upper midright small") is None, "it is small"
    assert WORLD.read_listing("<think> red circle upper midright </think>") is None, "a listing says how large"
    assert parse_instruction("add a red circle top left", MOSAIC) is None
    assert parse_instruction("make the circle top left large") is None, "the small world has one size"
    assert find_world("shapes").read_listing("<think> small red circle top left </think>") is None


@pytest.mark.parametrize("tag", WORLD.tags)
def test_what_people_type_is_read_as_the_prompt_is(tag):
    for prompt in WORLD.prompts(20, split="held_out", tags=[tag], seed=3):
        read = WORLD.read_prompt(prompt.text)
        assert read.columns["include"] == prompt.columns["include"]
        assert MOSAIC.kinds[read.columns["tag"]].counted == MOSAIC.kinds[tag].counted
    assert find_world("shapes").read_prompt("a red circle left of a cross and above a square") is None
    assert find_world("shapes").read_prompt("a small circle") is None


@pytest.mark.parametrize(
    ("condition", "least"), [("clean", 1.0), ("noise 0.05", 0.998), ("blur 0.7", 0.998), ("brightness 0.8", 0.98)]
)
def test_the_inspector_reads_what_is_drawn(condition, least):
    assert share_right(150, condition, seed=3, board=MOSAIC) >= least


@pytest.mark.parametrize(
    ("rough", "least"), [("faded", 0.96), ("half", 0.92), ("merged", 0.91), ("tinted", 0.94), ("smeared", 0.85)]
)
def test_the_inspector_finds_malformed_objects(rough, least):
    assert share_malformed(100, rough, seed=3, board=MOSAIC) >= least


def test_an_object_between_two_sizes_is_malformed():
    scenes = [(Obj("red", "circle", 2, 2, radius=radius, size="small"),) for radius in (3.0, 3.75, 4.5)]
    small, between, large = (seen[0] for seen in WORLD.inspect(WORLD.draw(scenes)))
    assert (small.size, small.malformed) == ("small", False) and (large.size, large.malformed) == ("large", False)
    assert between.malformed
    assert not WORLD.same(scenes[0], (scenes[0][0]._replace(size="large"),))
    with pytest.raises(InputError, match=r"not pictures of the mosaic world.*\n?.*60, 60"):
        WORLD.inspect(np.zeros((1, 3, 36, 36)))


def test_answers_follow_from_what_the_question_is_about(rng):
    asked = WORLD.questions(400, seed=5)
    assert {q.kind for q in asked} == set(WORLD.question_kinds) == {*find_world("shapes").question_kinds, "size"}
    for question in asked:
        about, answer = parse_listing(question.reply, MOSAIC), question.reply.split()[-1]
        assert answer == question.answer and about is not None
        if question.kind == "count":
            assert answer == NUMBERS[len(about)]
        if question.kind in ("shape", "size") and answer != "none":
            assert len(about) == 1 and answer in (about[0].shape, about[0].size)
    assert max(len(q.reply.split()) for q in asked) < 50
    assert {q.answer for q in asked if q.kind == "size"} == {"small", "large", "none"}


def test_examples_speak_only_the_world_s_words_and_fit_its_canvas():
    tokenizer = WORLD.tokenizer()
    assert world_speaking(tokenizer.get_vocab()) is WORLD
    unknown = tokenizer.token_to_id("<unk>")
    examples = WORLD.examples(PretrainSection(), seed=1)
    for kind in ("text_to_image", "edit", "critique", "question", "plan"):
        for example in examples(kind, 30):
            texts = [piece.text for piece in example.context if isinstance(piece, TextPiece)] + [example.answer or ""]
            assert unknown not in tokenizer.encode(" ".join(texts)).ids
            images = [piece.image for piece in example.context if isinstance(piece, ImagePiece)]
            images += [] if example.image is None else [example.image]
            assert all(image.shape == (3, 60, 60) for image in images)


def test_sets_and_seeds_are_fixed():
    pairs = sets.pairs(WORLD, 40)
    assert all(WORLD.judge(p.right.scene, p.right.prompt).total == 1 for p in pairs)
    assert {WORLD.edits_needed(p.near_miss.scene, p.near_miss.prompt) for p in pairs} == {1}
    one, two = (ShapesStream(seed=3, board=MOSAIC).edits(20) for _ in range(2))
    assert [edited.instruction for edited in one] == [edited.instruction for edited in two]
    assert all(np.array_equal(a.target, b.target) for a, b in zip(one, two, strict=True))


def test_the_base_that_ships_edits_and_reads_as_its_card_says():
    """The card: true edits 87 %, listings 100. Half of 40 would be far outside of chance."""
    pipe = Refiner.from_pretrained("mosaic")
    assert pipe.world is WORLD and pipe.loop.draft.drawing.size == (60, 60)
    assert (pipe.loop.plan.max_new_tokens, pipe.loop.critique.max_new_tokens) == (64, 80)
    sizes = dict.fromkeys(("num_prompts", "num_fixed", "num_right", "num_questions", "num_plans"), 2)
    items = find_bench("loop", load_recipe("mosaic_r3"), **sizes, num_edits=40, num_pairs=10).items()
    assert sum(measure_edits(WORLD, pipe.policy, items.edits, pipe.loop, seed=0)) >= 28
    read = measure_pairs(WORLD, pipe.policy, items.pairs, pipe.loop.for_evaluation(0.0), seed=0)
    assert len(read["listing"]) == 20 and sum(read["listing"]) >= 18


def test_a_folder_called_like_the_world_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mosaic").mkdir()
    with pytest.raises(CheckpointError, match="not a BAGEL folder"):
        Refiner.from_pretrained("mosaic")
    for path in ("./mosaik", "./shapes"):  # a path is never a world's name
        with pytest.raises(InputError, match=rf"{path}: no such folder; give a folder .* or a world: .*mosaic"):
            Refiner.from_pretrained(path)


def test_a_model_is_chosen_by_its_name():
    with pytest.raises(
        RecipeError, match=r"model.base: no model 'three' ships with the world 'mosaic'; use one of shared"
    ):
        load_recipe("mosaic_r3", ["model.base=three"])
    with pytest.raises(CheckpointError, match=r"no model 'three' ships with the world 'mosaic'"):
        base_folder(ModelSection(base="three"), world="mosaic")
    named = base_folder(ModelSection(base="shared_experts"), world="mosaic")
    assert named == WORLD.weights_folder() and named.name == "shared_experts"
    first = find_world("shapes").weights_folder()
    assert first == base_folder(ModelSection(), world="shapes") == find_world("shapes").weights_folder("weights")


@pytest.mark.parametrize(
    ("base", "recipe", "kind", "least"),
    [("shared_experts", "mosaic_pretrain_shared", "bagel_shared", 1), ("two_experts", "mosaic_pretrain", "bagel", 4)],
)
def test_both_bases_ship_with_a_card_and_draw(base, recipe, kind, least):
    folder = WORLD.weights_folder(base)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"`r3 pretrain {recipe}`" in card and "**No target was wrong on purpose**" in card
    assert "| greedy | sampled | n |" in card and load_recipe(recipe).model.kind == kind
    assert backbone_of(folder) is find(kind)
    policy = backbone_of(folder).load(folder, dtype=torch.float32, device="cpu")
    policy.module.requires_grad_(False)
    settings = loop_settings(load_recipe("mosaic_r3").rollout)
    drawn = measure_true_plans(WORLD, policy, WORLD.prompts(12, split="held_out", seed=3), settings, seed=3)
    assert sum(drawn["true_plan_drawn"]) >= least, "of 12: 34 and 68 % are drawn right"
    assert sum(drawn["held_out_true_plan"]) >= least
    bench = PainterBench(world=WORLD, prompts=WORLD.prompts(2, split="held_out", seed=3), edits=WORLD.edits(1, seed=3))
    job = Job(policy=policy, loop=settings, decoding="greedy", seed=0, rounds=0)
    samples = bench.measure(job, slice(0, 3))
    assert [set(sample.values) for sample in samples] == [{"true_plan", "held_out"}] * 2 + [{"true_edit"}]
    shown = [figure.name for figure in bench.figures(["true_plan", "held_out", "true_edit"])]
    assert shown == ["true_plan", "held_out", "true_edit"]
    assert [figure.name for figure in bench.figures(["true_plan", "true_edit"])] == ["true_plan", "true_edit"]


def test_both_bases_saw_the_same_examples_and_are_small_together():
    two, shared = (load_recipe(name) for name in ("mosaic_pretrain", "mosaic_pretrain_shared"))
    assert two.pretrain == shared.pretrain and two.training == shared.training
    folders = [WORLD.weights_folder(base) for base in ("shared_experts", "two_experts")]
    assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) < 20e6


def test_the_held_out_inspector_is_not_the_rewarded_one():
    rng = np.random.default_rng(6)
    rough = [
        tuple(o._replace(rough="tinted", wear=rng.random()) for o in random_scene(6, rng, MOSAIC)) for _ in range(20)
    ]
    images = WORLD.draw(rough)
    first, again = WORLD.inspect(images), WORLD.inspect_again(images)
    passed = [sum(not o.rough for scene in scenes for o in scene) for scenes in (first, again)]
    assert passed[1] > 2 * passed[0], "the second one overlooks four of ten tints, the first hardly any"
    assert find_world("shapes").inspect_again(images) == []
