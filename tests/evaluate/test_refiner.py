"""The refiner: the loop as people call it, with a tiny random model of the embedded world."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import r3_rl
from r3_rl.errors import CheckpointError, InputError
from r3_rl.evaluate.refiner import Refiner
from r3_rl.policy import adapters
from r3_rl.policy.adapters import AdapterSettings
from r3_rl.policy.bagel.backbone import BAGEL
from r3_rl.policy.bagel.checkpoint import fingerprint, load_bagel
from r3_rl.policy.bagel.policy import BagelPolicy
from r3_rl.rollout.rows import round_seed
from r3_rl.scoring.panel import Panel, ScorerSpec
from r3_rl.training.manifest import aside, complete
from tests.docs import world as tiny
from tests.policy.tiny_bagel import tiny_folder

STOP = "<think> a red circle top left </think> no further edit needed"
EDIT = "<think> nothing </think> add a red circle top left"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder of a model with the embedded world's sizes and words, and random weights."""
    return tiny.world_folder(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def pipe(world):
    loaded = Refiner.from_pretrained(world, dtype="float32")
    brief = {"max_new_tokens": 4}
    loop = replace(
        loaded.loop, plan=replace(loaded.loop.plan, **brief), critique=replace(loaded.loop.critique, **brief)
    )
    return Refiner(loaded.policy, loop, tokenizer=loaded.tokenizer)


class Scripted(BagelPolicy):
    """Draws as the random weights do, and writes what it is told: plans first, then one critique a row and round."""

    def __init__(self, policy, *critiques):
        super().__init__(policy.model, policy.reader)
        self.said = [["<think> </think>"], *critiques]

    def write(self, contexts, sampling, seeds):
        words = self.said.pop(0)
        written = super().write(contexts, sampling, seeds)
        return [replace(text, text=words[i % len(words)], ended=True) for i, text in enumerate(written)]


def scripted(pipe, *critiques):
    return Refiner(Scripted(pipe.policy, *critiques), pipe.loop, tokenizer=pipe.tokenizer)


def pixels(images):
    return [np.asarray(image).tolist() for image in images]


def test_a_stop_ends_its_prompt_and_the_others_go_on(pipe):
    out = scripted(pipe, [STOP, EDIT], [EDIT])(["a red circle", "two blue crosses"], num_rounds=2, seed=0)
    assert [len(images) for images in out.rounds] == [1, 3]
    assert out.stopped_after == [0, None]
    assert out.critiques == [[STOP], [EDIT, EDIT]]
    assert [image is images[-1] for image, images in zip(out.images, out.rounds, strict=True)] == [True, True]
    assert all(image.size == (36, 36) and image.mode == "RGB" for image in out.images)


def test_a_malformed_critique_ends_the_loop_and_is_no_stop(pipe):
    out = scripted(pipe, ["<think> no further edit needed"])("a red circle", seed=0)
    assert out.stopped_after == [None] and out.critiques == [["<think> no further edit needed"]]
    assert len(out.rounds[0]) == 1


def test_a_stop_after_a_refinement_counts_the_rounds(pipe):
    assert scripted(pipe, [EDIT], [STOP])("a red circle", num_rounds=4, seed=0).stopped_after == [1]


def test_a_prompt_is_drawn_alike_alone_and_beside_others_that_stop(pipe):
    many = scripted(pipe, [EDIT, STOP, EDIT], [EDIT])(["a cross", "a square", "a circle"], num_rounds=2, seed=0)
    one = scripted(pipe, [EDIT], [EDIT])("a cross", num_rounds=2, seed=0)
    np.testing.assert_allclose(many.rounds[0], one.rounds[0], atol=1)  # 1 level: sums of a batch round differently


@pytest.mark.parametrize("routing", ["split", "routed"])
def test_an_adapter_that_is_routed_by_task_is_asked_for_each_stage(world, tmp_path, routing):
    model = adapters.attach(load_bagel(world), AdapterSettings(rank=2, routing=routing), BAGEL.spec.branches, seed=0)
    with torch.no_grad():
        for layer in adapters.adapted_layers(model).values():
            for part in layer.lora_B.values():
                part.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    adapters.save_adapter(model, tmp_path / "run" / "adapter", fingerprint=fingerprint(world))
    pipe = Refiner.from_pretrained(world, tmp_path / "run", dtype="float32")
    brief = {"max_new_tokens": 4}
    pipe.loop = replace(pipe.loop, plan=replace(pipe.loop.plan, **brief), critique=replace(pipe.loop.critique, **brief))
    (found,) = scripted(pipe, [EDIT])("a red circle", num_rounds=1, seed=0).trajectories
    (draft, refined) = found.rounds
    stages = [draft.plan.task, draft.image.drawing.task, refined.critique.segment.task, refined.image.drawing.task]
    assert stages == ["plan", "draft", "critique", "refinement"]
    assert pipe.edit(Image.new("RGB", (36, 36)), "add a red circle")[0].size == (36, 36)


def test_zero_rounds_are_drafts(pipe):
    out = pipe(["a cross", "a square"], num_rounds=0, seed=0)
    assert [len(images) for images in out.rounds] == [1, 1]
    assert out.critiques == [[], []]


def test_the_same_seed_gives_the_same_images(pipe):
    one, again, other = (pixels(pipe("a cross", num_rounds=0, seed=seed).images) for seed in (3, 3, 4))
    assert one == again != other


def test_a_generator_gives_another_seed_at_every_call_and_the_same_ones_again(pipe):
    def two():
        generator = torch.Generator().manual_seed(7)
        return [pixels(pipe("a cross", num_rounds=0, generator=generator).images) for _ in range(2)]

    first, second = two()
    assert first != second
    assert two() == [first, second]


def test_without_a_seed_torch_s_own_decides(pipe):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        one = pixels(pipe("a cross", num_rounds=0).images)
        torch.manual_seed(5)
        assert pixels(pipe("a cross", num_rounds=0).images) == one


def test_the_inspector_s_verdict_is_the_score_where_the_world_can_read_the_prompt(pipe):
    out = scripted(pipe, [EDIT])(["a red circle", "draw what is there"], num_rounds=1, seed=0)
    assert out.scores == [[0.0, 0.0], None]
    assert "expected red circle>=1" in out.trajectories[0].final.verdict.words


def test_a_model_of_no_exact_world_has_no_scores_and_the_defaults_of_bagel(tmp_path, monkeypatch):
    brief = {"max_new_tokens": 4}
    small = {"plan": brief, "draft": {"num_steps": 2, "size": [16, 16]}, "refine": {"num_steps": 2}}
    spec = replace(BAGEL.spec, rollout={**BAGEL.spec.rollout, **small})
    monkeypatch.setattr(BagelPolicy, "spec", spec)
    pipe = Refiner.from_pretrained(tiny_folder(tmp_path), dtype="float32")
    assert pipe.world is None
    assert pipe.loop.protocol.reason_system
    assert pipe("a red circle", num_rounds=0, seed=0).scores is None


def test_defaults_of_bagel_are_a_rollout(pipe):
    from r3_rl.recipe.sampling import RolloutSection

    section = RolloutSection.model_validate(BAGEL.spec.rollout)
    assert (section.draft.guidance.text, section.refine.guidance.image) == (4.0, 1.5)


def adapted(world, folder, recipe=""):
    model = adapters.attach(load_bagel(world), AdapterSettings(rank=2), BAGEL.spec.branches, seed=0)
    with torch.no_grad():
        for layer in adapters.adapted_layers(model).values():
            layer.lora_B["default"].weight.fill_(0.2)
    return adapters.save_adapter(model, folder, fingerprint=fingerprint(world), recipe_text=recipe or None)


def test_an_adapter_changes_the_images_and_brings_its_settings_and_its_base(pipe, world, tmp_path):
    recipe = (
        f"model: {{kind: embedded, path: {world}}}\nrollout: {{draft: {{num_steps: 3}}, refine: {{num_steps: 4}}}}\n"
    )
    adapted(world, tmp_path / "run" / "adapter", recipe)
    tuned = Refiner.from_pretrained(adapter=tmp_path / "run")
    assert (tuned.loop.draft.drawing.num_steps, tuned.loop.refine.drawing.num_steps) == (3, 4)
    bare = Refiner(pipe.policy, tuned.loop, tokenizer=pipe.tokenizer)
    assert pixels(tuned("a cross", num_rounds=0, seed=0).images) != pixels(bare("a cross", num_rounds=0, seed=0).images)


def test_an_adapter_that_changes_nothing_is_said_to(world, tmp_path, capsys):
    fresh = adapters.attach(load_bagel(world), AdapterSettings(rank=2), BAGEL.spec.branches, seed=0)
    adapters.save_adapter(fresh, tmp_path / "fresh", fingerprint=fingerprint(world))
    assert Refiner.from_pretrained(world, tmp_path / "fresh").policy
    assert f"{tmp_path / 'fresh'}: the adapter changes nothing, so this is the base" in capsys.readouterr().err
    assert Refiner.from_pretrained(world, adapted(world, tmp_path / "moved")).policy
    assert not capsys.readouterr().err


def test_a_checkpoint_is_compared_with_its_manifest_before_it_is_loaded(world, tmp_path):
    folder = tmp_path / "run" / "checkpoints" / "checkpoint-4"
    complete(adapted(world, aside(folder)), folder, step=4, num_processes=1)
    assert Refiner.from_pretrained(world, folder).policy
    file = folder / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint-4 is damaged: adapter_model.safetensors has changed"):
        Refiner.from_pretrained(world, folder)


def test_how_an_adapter_was_trained_is_not_asked(world, tmp_path):
    """Its recipe may be older than the names of the keys that say how many rollouts a step had."""
    old = "num_generations: 16, images_per_plan: 2, images_per_critique: 1, draft: {num_steps: 3}"
    adapted(world, tmp_path / "adapter", f"model: {{path: {world}}}\nrollout: {{{old}}}\n")
    assert Refiner.from_pretrained(adapter=tmp_path / "adapter").loop.draft.drawing.num_steps == 3


def test_an_adapter_of_another_base_is_refused(world, tmp_path):
    folder = adapted(world, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="trained on another base"):
        Refiner.from_pretrained(tiny_folder(tmp_path / "other"), folder)


@pytest.mark.parametrize(
    ("prompt", "arguments", "said"),
    [
        ("", {}, "an empty prompt"),
        ([], {}, "an empty prompt"),
        (["a cross", "  "], {}, "an empty prompt"),
        ("two hexagons and a Purpel cross", {}, "does not know 'hexagons', 'Purpel'; its words are: a above add"),
        ("a cross", {"num_rounds": -1}, "-1 rounds; 0 to 16"),
        ("a cross", {"seed": -1}, "seed -1; 0 or more"),
        ("a cross", {"seed": 1, "generator": torch.Generator()}, "both a seed and a generator"),
        ("a cross", {"temperature": -0.1}, "temperature -0.1; 0 or more"),
    ],
)
def test_bad_input_is_one_line(pipe, prompt, arguments, said):
    with pytest.raises(InputError, match=said) as caught:
        pipe(prompt, **arguments)
    assert len(str(caught.value).splitlines()) == 1


def test_the_verb_writes_a_strip_and_says_what_it_does(r3, world, workplace):
    done = r3("refine", "a red circle", "--model", str(world), "--rounds", "1", "--out", "strip.png", "--seed", "3")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == f"drawing 'a red circle' with {world}: a draft and at most 1 rounds, seed 3"
    assert lines[1].startswith("draft    wrong: ") and lines[-1] == "picture  strip.png"
    with Image.open(workplace / "strip.png") as picture:
        assert picture.width > 200


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["", "--model", "WORLD"], "an empty prompt"),
        (["a hexagon", "--model", "WORLD"], "the model does not know 'hexagon'"),
        (["a cross", "--model", "nowhere"], "nowhere: no such folder"),
        (["a cross", "--model", "."], "not a BAGEL folder"),
        (["a cross", "--model", "WORLD", "--adapter", "nowhere"], "nowhere: no such folder"),
        (["a cross", "--model", "WORLD", "--adapter", "."], "holds no adapter"),
        (["a cross", "--out", "strip.jpg"], "strip.jpg: not a PNG file"),
        (["a cross", "--out", "no/strip.png"], "no/strip.png: no such folder 'no'"),
        (["a cross", "--rounds", "99"], "99 rounds; 0 to 16"),
    ],
)
def test_the_verb_says_what_is_wrong_in_one_line(r3, world, workplace, arguments, said):
    done = r3("refine", *[str(world) if argument == "WORLD" else argument for argument in arguments])
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1
    assert said in done.err


def test_a_stream_brings_every_stage_as_it_is_made_and_ends_with_what_a_call_gives(pipe):
    said = ([STOP, EDIT], [EDIT])
    stages = list(scripted(pipe, *said).stream(["a red circle", "two blue crosses"], num_rounds=2, seed=0))
    come = [[(len(i), len(c)) for i, c in zip(o.rounds, o.critiques, strict=True)] for o in stages]
    assert come == [[(1, 0), (1, 0)], [(1, 1), (1, 1)], [(1, 1), (2, 1)], [(1, 1), (2, 2)], [(1, 1), (3, 2)]]
    whole = scripted(pipe, *said)(["a red circle", "two blue crosses"], num_rounds=2, seed=0)
    assert pixels(stages[-1].images) == pixels(whole.images)
    assert stages[-1].scores == whole.scores and stages[-1].stopped_after == whole.stopped_after


def test_a_stream_ends_when_everybody_has_stopped(pipe):
    stages = list(scripted(pipe, [STOP]).stream("a red circle", num_rounds=4, seed=0))
    assert [len(output.critiques[0]) for output in stages] == [0, 1, 1]


def test_a_stream_asks_scorers_about_every_image(pipe):
    def brightness(images, **columns):
        return [float(image.mean()) / 255 for image in images]

    with Panel([ScorerSpec(name="brightness", scorer=brightness)]) as panel:
        *_, last = scripted(pipe, [EDIT]).stream("a red circle", num_rounds=1, seed=0, submit=panel.submit)
    scores = [this.verdict.scores["brightness"] for this in last.trajectories[0].rounds]
    assert scores == [pytest.approx(float(np.mean(image)) / 255) for image in last.rounds[0]]
    assert last.scores is None, "the world was not asked"


def test_the_package_offers_it():
    assert r3_rl.Refiner is Refiner


def test_an_edit_of_a_given_image_is_the_refinement_that_a_critique_with_these_words_leads_to(pipe):
    out = scripted(pipe, [EDIT])("a red circle", num_rounds=1, seed=5)
    (edited,) = pipe.edit(out.rounds[0][0], "add a red circle top left", prompt="a red circle", seed=round_seed(5, 1))
    np.testing.assert_allclose(edited, out.images[0], atol=2)  # the draft went through 8 bits on its way


def test_several_edits_differ_and_the_first_is_the_one_alone(pipe):
    given = pipe("a red circle", num_rounds=0, seed=0).images[0]
    one, other = pipe.edit(given, "add a red circle top left", num_images=2, seed=3)
    np.testing.assert_allclose(pipe.edit(given, "add a red circle top left", seed=3)[0], one, atol=1)
    assert pixels([one]) != pixels([other])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"instruction": " "}, "an empty prompt"),
        ({"instruction": "add a zebra"}, "does not know 'zebra'"),
        ({"instruction": "add a cross", "num_images": 0}, "0 images"),
        ({"instruction": "add a cross", "seed": -1}, "seed -1"),
    ],
)
def test_an_edit_that_is_none_is_refused(pipe, arguments, problem):
    with pytest.raises(InputError, match=problem):
        pipe.edit(Image.new("RGB", (36, 36)), **arguments)


def test_a_result_displays_itself_in_a_notebook(pipe):
    shown = scripted(pipe, [EDIT])("a red circle", num_rounds=1, seed=0)._repr_html_()
    assert shown.count("data:image/png;base64,") == 2 and "a red circle" in shown
    assert EDIT.replace("<", "&lt;").replace(">", "&gt;") in shown
