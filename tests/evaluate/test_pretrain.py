"""Supervised pretraining from a recipe, at tiny size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from r3_rl.assemble import load_policy
from r3_rl.balance.progressive import Progressive
from r3_rl.errors import InputError, RecipeError
from r3_rl.evaluate.base import bench_of
from r3_rl.evaluate.pretrain import new_policy, pretrain
from r3_rl.modalities import ImagePiece, TextPiece
from r3_rl.observe.lock import LOCK
from r3_rl.observe.metrics import unknown_names
from r3_rl.observe.recorder import read_lines
from r3_rl.policy.bagel.backbone import BAGEL
from r3_rl.policy.base import Example
from r3_rl.pretraining.steps import (
    GENERATION,
    UNDERSTANDING,
    Average,
    drop_contexts,
    objectives,
    rate,
    run_pretraining,
)
from r3_rl.recipe.sampling import ModelSection
from r3_rl.recipe_io import load_recipe
from r3_rl.worlds.base import find_world
from r3_rl.worlds.shapes.prompts import TAGS, all_prompts

SMALL = [
    *(f"pretrain.batch.{kind}=4" for kind in ("text_to_image", "edit", "critique", "question", "plan")),
    *("pretrain.model.hidden_size=32", "pretrain.model.num_layers=1", "pretrain.model.intermediate_size=32"),
    *("pretrain.model.vit_hidden_size=32", "pretrain.model.vit_num_layers=1", "pretrain.model.num_heads=2"),
    *("pretrain.micro_batch=8", "pretrain.max_hours=null", "pretrain.model.num_kv_heads=1"),
]


FEW = {
    "num_prompts": 4,
    "num_fixed": 4,
    "num_right": 2,
    "num_questions": 2,
    "num_pairs": 2,
    "num_plans": 2,
    "num_edits": 2,
}
WORLD = find_world("shapes")


def _recipe(tmp_path: Path, *overrides: str):
    return load_recipe("shapes_pretrain", [*SMALL, f"training.output_dir={tmp_path}", *overrides])


def test_a_recipe_makes_a_folder_that_a_recipe_can_start_from(tmp_path: Path) -> None:
    later = "pretrain.later=[{steps: 1, batch: {text_to_image: 2, edit: 2, critique: 2, question: 2, plan: 2}}]"
    recipe = _recipe(tmp_path, "pretrain.steps=2", "pretrain.tower_steps=2", "pretrain.tower_images=4", later)
    made = pretrain(recipe, name="mine", bench=bench_of(recipe, **FEW))
    rows = read_lines(made.folder.parent / "metrics.jsonl").rows
    assert len(rows) == 3 and (made.folder.parent / LOCK).is_file(), "nobody else wrote the run"
    first, last = (load_policy(ModelSection(path=str(made.folder.parent / f"leg-{n}"))).policy.model for n in (1, 2))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), last.parameters(), strict=True))
    assert unknown_names(set(rows[0]) - {"step"}) == []
    card = (made.folder / "README.md").read_text(encoding="utf-8")
    assert "`r3 pretrain mine`, seed 0" in card and "the synthetic world `shapes`" in " ".join(card.split())
    assert "True edit drawn" in card and "No target was wrong on purpose" in card
    assert "| tower | 2 | 4 (images" in card
    assert 0 <= json.loads((made.folder.parent / "summary.json").read_text())["tower/right"] <= 1
    names = list(made.measured)
    assert names.index("draft_greedy") + 1 == names.index("draft"), "greedy and sampled next to each other"
    assert not any(name.startswith("swap_") for name in names)
    loaded = load_policy(ModelSection(path=str(made.folder)), device="cpu")
    again = new_policy(BAGEL, _recipe(tmp_path, f"pretrain.start={made.folder}").pretrain, WORLD, seed=1)
    for ours, theirs in zip(loaded.policy.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_later_leg_changes_what_it_says_and_keeps_the_rest(tmp_path: Path) -> None:
    later = "pretrain.later=[{steps: 5, plan_noise: 0.4, decay_fraction: 0.9}, {steps: 3, plan_errors: 2}]"
    first, second, third = _recipe(tmp_path, later, "pretrain.apart_fraction=0.5").pretrain.legs()
    assert (second.steps, second.plan_noise, second.apart_fraction) == (5, 0.4, 0.0)
    assert (first.decay_fraction, second.decay_fraction, third.decay_fraction) == (0.4, 0.9, 0.9)
    assert (second.batch, second.muon_lr, second.plan_errors) == (first.batch, first.muon_lr, first.plan_errors)
    assert (third.steps, third.plan_noise, third.plan_errors) == (3, 0.4, 2)
    assert len(_recipe(tmp_path, "pretrain.later=[]").pretrain.legs()) == 1


def test_the_loss_falls_and_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    settings = _recipe(tmp_path, "pretrain.steps=12", "pretrain.warmup_steps=2").pretrain
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(4, 3, 36, 36, generator=generator)
    examples = [Example(context=(TextPiece(text="a red circle"),), answer="<think>", image=p) for p in pictures]
    ends = []
    for _ in range(2):
        policy = new_policy(BAGEL, settings, WORLD, seed=3)
        losses = [n["text/loss"] for _, n in run_pretraining(policy, lambda kind, count: examples, settings, seed=3)]
        assert losses[-1] < losses[0] / 2
        ends.append([p.detach().clone() for p in policy.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_snapshot_is_the_moving_average_and_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    settings = _recipe(tmp_path, "pretrain.steps=3").pretrain
    generator = torch.Generator().manual_seed(0)
    examples = [
        Example(context=(TextPiece(text="a red circle"),), answer="<think>", image=p)
        for p in torch.rand(4, 3, 36, 36, generator=generator)
    ]
    ends, taken = [], {}
    for looks in (False, True):
        policy = new_policy(BAGEL, settings, WORLD, seed=3)
        average = Average(policy.module)
        for step, _ in run_pretraining(policy, lambda kind, count: examples, settings, seed=3, average=average):
            if looks:
                raw = [p.detach().clone() for p in policy.module.parameters()]
                with average.applied(policy.module):
                    taken[step] = [p.detach().clone() for p in policy.module.parameters()]
                assert all(torch.equal(a, b) for a, b in zip(raw, policy.module.parameters(), strict=True))
                assert any(not torch.equal(a, b) for a, b in zip(raw, taken[step], strict=True))
        ends.append([p.detach().clone() for p in policy.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True)), "looking changes nothing"
    assert all(torch.equal(a, b) for a, b in zip(ends[1], taken[2], strict=True)), "the run ends as its last snapshot"


def test_a_mistyped_kind_and_a_step_that_never_comes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no kind of prompt is called 'huge_count'; did you mean 'multi_count'"):
        pretrain(_recipe(tmp_path, "pretrain.draw_weights={huge_count: 0.1}"))
    assert not list(tmp_path.iterdir()), "before anything is made"
    with pytest.raises(RecipeError, match="9 is not one of the run's 3 steps"):
        _recipe(tmp_path, "pretrain.steps=3", "pretrain.later=[]", "pretrain.snapshots=[9]")
    with pytest.raises(RecipeError, match="draw_weights"):
        _recipe(tmp_path, "pretrain.draw_weights={counting: -1}")


def test_kinds_that_are_weighed_out_are_neither_drawn_nor_planned(tmp_path: Path) -> None:
    weights = ", ".join(f"{tag}: 0" for tag in TAGS if tag != "counting")
    batches = WORLD.examples(_recipe(tmp_path, f"pretrain.draw_weights={{{weights}}}").pretrain, seed=0)
    counting = {prompt.text for prompt in all_prompts("counting")}
    for kind in ("text_to_image", "plan"):
        assert {example.context[0].text for example in batches(kind, 20)} <= counting
    asked = {example.context[1].text.removeprefix("check ") for example in batches("critique", 20)}
    assert not asked <= counting, "critiques are of all kinds"


def test_prompt_weights_are_of_drawings_and_critiques(tmp_path: Path) -> None:
    weights = ", ".join(f"{tag}: 0" for tag in TAGS if tag != "counting")
    batches = WORLD.examples(_recipe(tmp_path, f"pretrain.prompt_weights={{{weights}}}").pretrain, seed=0)
    counting = {prompt.text for prompt in all_prompts("counting")}
    assert {example.context[0].text for example in batches("text_to_image", 20)} <= counting
    assert {example.context[1].text.removeprefix("check ") for example in batches("critique", 20)} <= counting
    assert not {example.context[0].text for example in batches("plan", 20)} <= counting


def test_the_first_bases_say_how_often_positions_were_asked_for():
    weights = {name: load_recipe(name).pretrain.prompt_weights for name in ("shapes_pretrain", "shapes_first_base")}
    assert weights == {"shapes_pretrain": {"position": 2.0}, "shapes_first_base": {"position": 1.5}}


def test_objectives_are_apart_first_and_joint_later() -> None:
    rng = np.random.default_rng(0)
    run_of = Progressive(apart=0.4, ramp=0.2)
    held = [objectives(step, run_of.share(step / 100), rng) for step in range(100)]
    assert set(held[:40]) == {GENERATION, UNDERSTANDING}
    assert set(held[60:]) == {GENERATION + UNDERSTANDING}


@pytest.mark.parametrize(("step", "done", "factor"), [(0, 0.0, 0.025), (99, 0.5, 1.0), (99, 0.8, 0.5), (9, 1.0, 0.01)])
def test_the_rate_rises_and_falls(tmp_path: Path, step: int, done: float, factor: float) -> None:
    settings = _recipe(tmp_path).pretrain
    assert rate(step, done, settings, Progressive(apart=0.0, ramp=0.0)) == pytest.approx(factor)


def test_dropped_contexts_keep_the_image_to_learn() -> None:
    picture = torch.zeros(3, 36, 36)
    both = Example(context=(ImagePiece(image=picture, use="edit"), TextPiece(text="add")), image=picture)
    words = Example(context=(TextPiece(text="check"),), answer="yes")
    out = drop_contexts([both, words] * 50, 1.0, np.random.default_rng(0))
    assert all(example is words for example in out[1::2])
    kinds = {tuple(type(piece) for piece in example.context) for example in out[::2]}
    assert kinds == {(ImagePiece,), (TextPiece,)}
    assert all(example.image is picture for example in out[::2])
