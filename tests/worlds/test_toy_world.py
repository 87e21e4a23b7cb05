"""A world that r3_rl has never heard of goes through everything by its doors, as a package of its own."""

from __future__ import annotations

import importlib
import itertools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from r3_rl.cli import app, run_verbs
from r3_rl.errors import InputError
from r3_rl.evaluate.demo import demo
from r3_rl.evaluate.pretrain import pretrain
from r3_rl.evaluate.refiner import Refiner
from r3_rl.observe.recorder import read_lines
from r3_rl.recipe_io import load_recipe
from r3_rl.worlds.base import find_world
from r3_rl.worlds.sets import pairs, right_drafts, verdicts, wrong_drafts

SOURCE = Path(__file__).parent / "toy"
NAME = "toy_world"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The toy world as pip would install it."""
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(SOURCE, site / NAME, ignore=shutil.ignore_patterns("__pycache__"))
    info = site / f"{NAME}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[r3_rl.worlds]\ntoy = {NAME}:WORLD\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        importlib.invalidate_caches()
        yield site / NAME
        sys.modules.pop(NAME, None)


@pytest.fixture
def world(package):
    return find_world("toy")


def test_its_inspector_is_exact(world):
    scenes = list(itertools.product(("dark", "amber", "teal", "plum"), repeat=4))
    rough = world.roughen(world.draw(scenes), np.random.default_rng(0))
    assert world.inspect(rough) == scenes
    half = world.draw([("amber",) * 4])
    half[:, :, :3] = 0.0
    assert world.inspect(half)[0][:2] == ("smudge", "smudge")
    assert (
        world.read_plan(world.plan_text(scenes[7])) == scenes[7] and world.read_plan("<think> amber </think>") is None
    )


def test_generic_sets_hold_in_it(world):
    assert {v.total for d in right_drafts(world, 20, seed=1) for v in judged(world, d)} == {1.0}
    assert {v.total for d in wrong_drafts(world, 20) for v in judged(world, d)} == {0.0}
    assert {world.edits_needed(p.near_miss.scene, p.near_miss.prompt) for p in pairs(world, 20)} == {1}


def judged(world, drawn):
    return verdicts(world, [torch.from_numpy(drawn.image)], [drawn.prompt])


def test_a_recipe_of_another_canvas_is_refused_and_a_base_without_weights_is_said(package, r3, workplace):
    said = r3("check", str(package / "pretrain.yaml"), "rollout.draft.size=[36, 36]", "pretrain.model.vit_patch_size=9")
    assert said.code == 2 and "the images of the data 'toy' have 16 pixels a side; use [16, 16]" in said.err
    assert "pretrain.model.vit_patch_size: 9 does not divide the world's 16 pixels; use 8 or 16" in said.err
    said = r3("check", str(package / "pretrain.yaml"), "pretrain.plan_noise=0.2")
    assert "pretrain.plan_noise: the examples of the world 'toy' do not follow it; leave it out" in said.err
    said = r3("check", str(package / "demo.yaml"), "data.tags=[won]")
    assert "no kind of prompt is called 'won'; did you mean 'one'?" in said.err
    assert "model.path: the toy world has no weights yet" in said.err


def test_it_is_pretrained_demonstrated_refined_and_reported(package, r3, workplace, capsys):
    made = pretrain(load_recipe(package / "pretrain.yaml"), name="pretrain").folder.parent
    losses = [row["text/loss"] for row in read_lines(made / "metrics.jsonl").rows]
    assert losses[-1] < losses[0] / 2
    card = (made / "weights" / "README.md").read_text()
    assert "world `toy`" in card and "`r3 pretrain pretrain`" in card and "… which tile" in card
    shutil.copytree(made / "weights", package / "weights")

    command, given, _ = app.parse_args(["demo", "--world", "toy", "--out", "demo", "--minutes", "2"])
    assert command is run_verbs.demo
    demo(**given.arguments)
    assert "greedy texts, untrained -> trained" in capsys.readouterr().out
    summary = json.loads(Path("demo/summary.json").read_text())
    assert summary["num_prompts"] == 6 and {"draft_greedy_before", "questions_after"} <= summary.keys()
    measured = json.loads(Path("demo/evaluation.json").read_text())["phases"]["after"]
    assert {
        "draft_greedy/one",
        "harder_draft",
        "plan_right",
        "listing",
        "true_edit_drawn",
        "ita_fixed",
    } <= measured.keys()
    assert len(read_lines(Path("demo/metrics.jsonl")).rows) == 2
    report = r3("report", "demo")
    assert report.code == 0 and "… which tile" in Path("demo/report.html").read_text()
    assert r3("export", "demo").code == 0
    loading = Path("demo/adapter/README.md").read_text()
    assert "the model that ships with the world toy" in loading and 'find_world("toy").weights_folder()' in loading

    pipe = Refiner.from_pretrained(adapter="demo")
    assert pipe.world.name == "toy" and pipe.loop.draft.drawing.size == (16, 16)
    out = pipe(["amber and teal", "light off"], num_rounds=1, seed=0)
    assert out.images[0].size == (16, 16) and len(out.scores[0]) >= 1 and out.scores[1] is None
    with pytest.raises(InputError, match="the model does not know 'circle'"):
        pipe("amber circle")
    assert load_recipe("demo/recipe.resolved.yaml").data.world == "toy"
