"""A backbone of image tokens that regenerates: the engine, credit, update and a whole run take it as it is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from r3_rl.errors import InputError
from r3_rl.evaluate.base import bench_of
from r3_rl.evaluate.pretrain import pretrain
from r3_rl.evaluate.run import train
from r3_rl.export import export
from r3_rl.modalities import ImagePiece, ImageTokenSegment, TextPiece
from r3_rl.nodes import Node
from r3_rl.nodes_io import from_bytes, to_bytes
from r3_rl.observe.recorder import read_lines
from r3_rl.policy.adapters import AdapterSettings
from r3_rl.policy.base import Drawing, Sampling
from r3_rl.recipe_io import json_schema, load_recipe
from r3_rl.rollout.engine import Engine
from r3_rl.stages.settings import DrawingPlan, LoopSettings
from r3_rl.training.batcher import Batcher
from r3_rl.types import Prompt
from tests.policy.installed import install_toy
from tests.policy.tiny import AnyWords
from tests.policy.toy import TOY
from tests.training.test_trainer import assert_equal_weights, make, run, weights

PROMPTS = [Prompt(text="a red circle"), Prompt(text="two blue square")]
PLAN = DrawingPlan(drawing=Drawing(num_steps=4, size=(24, 24)))
WORDS = Sampling(max_new_tokens=5)
LOOP = LoopSettings(protocol=AnyWords(), plan=WORDS, critique=WORDS, draft=PLAN, refine=PLAN)


@pytest.fixture
def folder(tmp_path):
    return TOY.write_tiny(tmp_path / "weights")


def policy_of(folder):
    return TOY.load(folder, dtype=torch.float32, device="cpu")


def trainer_of(folder, tmp_path, **options):
    return make(tmp_path, policy=policy_of(folder), loop_settings=LOOP, dataset=PROMPTS, **options)


def test_the_engine_regenerates_and_its_nodes_cross_a_process_border(folder):
    policy = policy_of(folder)
    engine = Engine(policy=policy, settings=LOOP)
    drafts = engine.drafts(PROMPTS, seed=1, plans=4)
    refined = [node for node in engine.round(drafts, seed=2) if node.stage == "refinement"]
    assert refined and all(isinstance(node.sample, ImageTokenSegment) for node in [*drafts, *refined])
    for node in refined:
        assert isinstance(node.parent, Node) and isinstance(node.parent.parent, Node)
        prompt, looked, edit = node.sample.context
        assert isinstance(prompt, TextPiece) and prompt.text == node.prompt.text
        assert isinstance(looked, ImagePiece) and looked.use == "look"
        assert torch.equal(looked.image, node.parent.parent.image)
        assert isinstance(edit, TextPiece) and edit.text == node.parent.critique.instruction
    again = from_bytes(to_bytes(refined))
    for ours, theirs in zip(
        policy.replay([n.sample for n in refined]), policy.replay([n.sample for n in again]), strict=True
    ):
        assert torch.equal(ours.log_probs, theirs.log_probs)


def test_three_steps_train_texts_and_image_tokens(folder, tmp_path):
    ends = []
    for number in range(2):
        trainer = trainer_of(folder, tmp_path / str(number), max_steps=3, beta=0.01, image_beta=0.01, probe_every=1)
        checked = trainer.self_check()
        assert list(checked.gradient_norm) == ["shared"] and max(checked.deviation.values()) < 1e-4
        before = weights(trainer)
        rows = run(trainer)
        assert len(rows) == 3
        for row in rows:
            assert row["ratio/text_deviation"] < 1e-4 and row["ratio/image_deviation"] < 1e-4
            assert row["grad_norm"] > 0 and "image/loss" in row
        assert rows[0]["image/kl"] < 1e-6 < rows[-1]["image/kl"] < 1, "a fresh adapter is the reference"
        assert any("refine/gain_mean" in row for row in rows), "drafts and refinements take turns"
        assert all(not torch.equal(before[name], after) for name, after in weights(trainer).items() if "lora_B" in name)
        ends.append(weights(trainer))
    assert_equal_weights(*ends)


def test_a_dummy_is_one_token(folder):
    policy = policy_of(folder)
    policy.module.requires_grad_(True)
    image = Batcher(policy=policy, drawing=PLAN.drawing).dummies["generation", ""].segment
    (replayed,) = policy.replay([image])
    assert replayed.log_probs.shape == image.log_probs.shape == (1,) and replayed.log_probs.requires_grad


def test_full_weights_learn_what_is_rewarded(folder, tmp_path):
    """Redness of the drafts, by a policy without adapter: the credit of an image reaches its tokens."""
    policy = policy_of(folder)
    policy.module.requires_grad_(True)
    options = {"schedule": "draft_only", "lora": None, "num_generations": 8, "learning_rate": 3e-3, "max_steps": 12}
    rows = run(make(tmp_path, policy=policy, loop_settings=replace(LOOP, plan=None), dataset=PROMPTS, **options))
    scores = [row["rewards/red/mean"] for row in rows]
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.05


def test_a_branch_that_it_does_not_have_is_named(folder, tmp_path):
    with pytest.raises(InputError, match="'generation' is not a branch of this backbone; choose one of shared, both"):
        trainer_of(folder, tmp_path, lora=AdapterSettings(rank=2, branches="generation"), text_loss_weight=0.0)
    with pytest.raises(InputError, match="nothing of the generation branch is trained"):
        trainer_of(folder, tmp_path, image_learning_rate=1e-3).train()


def recipe_of(folder, tmp_path, *more):
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p.text}) + "\n" for p in PROMPTS))
    (tmp_path / "r.yaml").write_text(
        f"version: 1\nmodel: {{kind: auto, path: {folder}}}\ndata: {{kind: jsonl, path: prompts.jsonl}}\n"
        "rewards: [{scorer: sharpness}]\n"
        "rollout: {num_prompts: 2, branch: {plan: 3, critique: 3}, plan: {max_new_tokens: 4}, "
        "critique: {max_new_tokens: 4}, draft: {size: [24, 24], num_steps: 3}, refine: {num_steps: 3}}\n"
        f"algorithm: {{schedule: tree}}\nlora: {{rank: 2}}\nobserve: {{gallery: 1}}\n"
        f"training: {{max_steps: 2, output_dir: {tmp_path / 'runs'}}}\n"
    )
    return load_recipe(tmp_path / "r.yaml", more)


def test_a_recipe_trains_and_exports_it(folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(install_toy(tmp_path))
    result = train(recipe_of(folder, tmp_path), name="run")
    assert [row["step"] for row in read_lines(result.folder / "metrics.jsonl").rows] == [1, 2]
    card = export(result.folder).folder / "README.md"
    assert "Toy's layout" in card.read_text()


def test_the_budget_counts_image_tokens_once_and_not_denoising_steps(folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(install_toy(tmp_path))
    drawn = ["rollout.draft.size=[48, 48]", "rollout.draft.num_steps=8", "rollout.draft.window=all"]
    assert recipe_of(folder, tmp_path, *drawn, "training.token_budget=64").training.token_budget == 64


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rollout.draft.size=[25,24]", "25 pixels are not a multiple of 12, which is what the model draws"),
        ("rollout.draft.size=[60,24]", "60 is above 48, which is what the model draws"),
        ("lora.branches=understanding", "Toy has the branches shared; use 'both' for all of them"),
        ("lora.rank_generation=4", "Toy has no branch of its own for drawing, but shared; leave it out"),
        ("training.image_learning_rate=0.01", "Toy has no branch of its own for drawing"),
        ("balance.image_gradients=generation", "balance.image_gradients: Toy has no branch of its own for drawing"),
        ("training.parallel.kind=fsdp2", "the layers of Toy cannot be sharded; use 'ddp'"),
        (
            'lora.enabled=false training.deepspeed={"zero_optimization":{"stage":3}}',
            "training.deepspeed: the layers of Toy cannot be sharded; use ZeRO 1 or 2",
        ),
        ("training.parallel.replicate=2", "it is for shards, and the layers of Toy cannot be sharded; drop it"),
        ("training.parallel.keep_gathered=true", "training.parallel.keep_gathered: it is for shards"),
        ("lora.enabled=false model.dtype=bfloat16", "model.dtype: full weights of 16 bits are trained in shards"),
        ("training.gradient_checkpointing=true", "Toy does not compute layers again; set it to false"),
        ("model.kind=bagel", "has no llm_config.json; check model.path"),
        ("rollout.protocol=toy", "the backbone 'toy' brings no templates; use 'compact'"),
    ],
)
def test_a_recipe_that_does_not_fit_it_is_one_clear_line(folder, tmp_path, monkeypatch, override, said):
    monkeypatch.syspath_prepend(install_toy(tmp_path))
    with pytest.raises(InputError) as caught:
        recipe_of(folder, tmp_path, *override.split())
    assert said in str(caught.value) and "\n" not in str(caught.value)


SMALL = (
    "model.kind=toy",
    "pretrain.steps=2",
    "pretrain.later=[]",
    "pretrain.batch.edit=0",
    "pretrain.micro_batch=8",
    "rollout.rounds=1",
)
FEW = dict.fromkeys(
    ("num_prompts", "num_fixed", "num_right", "num_questions", "num_pairs", "num_plans", "num_edits"), 2
)


def test_a_recipe_pretrains_it_by_its_own_sizes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(install_toy(tmp_path))
    batch = [f"pretrain.batch.{kind}=2" for kind in ("text_to_image", "critique", "question", "plan")]
    given = [*SMALL, *batch, "pretrain.model.width=16", f"training.output_dir={tmp_path / 'runs'}"]
    recipe = load_recipe("shapes_pretrain", given)
    assert recipe.pretrain.model == {"width": 16, "num_layers": 2}, "the sizes that were left out are the backbone's"
    made = pretrain(recipe, bench=bench_of(recipe, **FEW))
    assert "One tower of 2 layers" in (made.folder / "README.md").read_text()
    assert TOY.load(made.folder, dtype=torch.float32, device="cpu").module.sizes["width"] == 16


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("pretrain.model.weigth=8", "pretrain.model.weigth: unknown key; did you mean 'width'?"),
        ("pretrain.model.width=1", "pretrain.model.width: must be at least 2, not 1"),
        ("pretrain.model.vit_hidden_size=16", "pretrain.model.vit_hidden_size: unknown key; the keys here are width"),
        ("pretrain.batch.edit=3", "pretrain.batch.edit: Toy does not edit, it regenerates; set it to 0"),
        ("pretrain.later=[{batch: {edit: 3}}]", "pretrain.later.0.batch.edit: Toy does not edit"),
        ("pretrain.model=5", "pretrain.model: expected a mapping, got 5"),
    ],
)
def test_sizes_that_it_does_not_have_are_one_clear_line(tmp_path, monkeypatch, override, said):
    monkeypatch.syspath_prepend(install_toy(tmp_path))
    with pytest.raises(InputError) as caught:
        load_recipe("shapes_pretrain", [*SMALL, override])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_schema_lists_what_every_backbone_has(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(install_toy(tmp_path))
    defined = json_schema()["$defs"]
    assert defined["LoraSection"]["properties"]["branches"]["enum"] == ["understanding", "generation", "shared", "both"]
    *ours, toys = defined["PretrainSection"]["properties"]["model"]["anyOf"]
    assert all("vit_hidden_size" in of_one["properties"] for of_one in ours)
    assert list(toys["properties"]) == ["width", "num_layers"]
