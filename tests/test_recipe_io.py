"""Recipe files: what is read, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from r3_rl.errors import RecipeError
from r3_rl.policy.bagel.config import BagelConfig
from r3_rl.recipe import geometry
from r3_rl.recipe_io import dump_resolved, find_recipe, load_recipe, shipped_recipes

GOOD = "version: 1\nrewards:\n  - scorer: sharpness\n"


@pytest.fixture
def write(workplace: Path):
    def write_file(text: str, name: str = "r.yaml") -> str:
        (workplace / name).write_text(text, encoding="utf-8")
        return name

    return write_file


def refused(path: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


@pytest.mark.parametrize("name", list(shipped_recipes()))
def test_shipped_recipe_loads_and_its_resolved_form_is_the_same_recipe(name, write, tmp_path):
    brought = []
    if name.startswith("bagel_"):  # weights and prompts are the user's, and scorers with weights need packages
        BagelConfig().to_folder(tmp_path)
        (tmp_path / "prompts.jsonl").write_text('{"prompt": "a red cup"}\n')
        brought = [f"model.path={tmp_path}", "data.kind=jsonl", f"data.path={tmp_path}/prompts.jsonl"]
        brought += ["data.prompt_key=null", "rewards=[{scorer: jpeg_size}]"]
    recipe = load_recipe(name, brought)
    assert load_recipe(write(dump_resolved(recipe))) == recipe


def test_defaults_hold_where_a_recipe_is_silent(write):
    recipe = load_recipe(write(GOOD))
    assert (recipe.rollout.num_prompts, recipe.rollout.branch.plan) == (8, 8)
    assert recipe.pretrain is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("rollout:\n  num_promts: 4\n", "r.yaml:5: rollout.num_promts: unknown key; did you mean 'num_prompts'?"),
        ("rollout:\n  group_sise: 4\n", "r.yaml:5: rollout.group_sise: unknown key; did you mean 'branch'?"),
        ("max_steps: 4\n", "r.yaml:4: max_steps: unknown key; did you mean 'training.max_steps'?"),
        ("rolout:\n  x: 4\n", "r.yaml:4: rolout: unknown key; did you mean 'rollout'?"),
        ("training:\n  seed: 1.5\n", "r.yaml:5: training.seed: expected a whole number, got 1.5"),
        ("training:\n  seed: '8'\n", "r.yaml:5: training.seed: expected a whole number, got '8'; remove the quotes"),
        ("lora: 5\n", "r.yaml:4: lora: expected a section (a mapping of keys), got 5"),
        ("lora:\n  enabled: yes\n", "expected true or false, got 'yes'; YAML knows only true and false"),
        ("training:\n  learning_rate: 0\n", "r.yaml:5: training.learning_rate: must be above 0, not 0"),
        ("training:\n  learning_rate: .nan\n", "r.yaml:5: training.learning_rate: "),
        (
            "rollout:\n  branch: {plan: 1}\n",
            "r.yaml:5: rollout.branch.plan: 1 plan and 1 draft in a reason step: no text and no image has a peer",
        ),
        ("rollout:\n  branch:\n    draft: 0\n", "r.yaml:6: rollout.branch.draft: must be at least 1, not 0"),
        (
            "rollout:\n  branch: {edit: 2}\n",
            "rollout.branch.edit: unknown key; the keys here are plan, draft, ",
        ),
        (
            "rollout:\n  images_per_plan: 4\n",
            "rollout.images_per_plan: renamed; write rollout.branch: {plan: 2, draft: 4, critique: 8, refinement: 1}",
        ),
        ("rollout:\n  draft:\n    sde: cpss\n", "r.yaml:6: rollout.draft.sde: 'cpss' is none of"),
        ("rollout:\n  draft:\n    size: [32]\n", "r.yaml:6: rollout.draft.size.1: missing; the list is too short"),
        (
            "rollout:\n  draft:\n    num_sde_steps: 9\n",
            "r.yaml:6: rollout.draft.num_sde_steps: 9 is more than the 8 steps",
        ),
        ("training:\n  seed: 1\n  seed: 2\n", "r.yaml:6: training.seed: written twice, first in line 5"),
        ("data:\n  kind: jsonl\n  path: no.jsonl\n", "r.yaml:6: data.path: no such file"),
        ("data:\n  kind: jsonl\n  path: empty.jsonl\n", "empty.jsonl' is empty"),
        ("data:\n  kind: geneval\n", "r.yaml:4: data.path: kind 'geneval' needs the path of a prompt file"),
        ("model:\n  kind: bagel\n  path: nowhere\n", "r.yaml:6: model.path: no such folder"),
        ("eval_rewards:\n  - scorer: sharpnes\n", "r.yaml:5: eval_rewards.0.scorer: no scorer is called 'sharpnes'"),
        ("eval_rewards:\n  - scorer: sharpness\n    params: {haalf: 1}\n", "eval_rewards.0.scorer: "),
        (
            "eval_rewards:\n  - {scorer: length}\n  - {scorer: length}\n",
            "r.yaml:6: eval_rewards.1: 'length' stands here twice",
        ),
        ("training: !!python/object:os.system {}\n", "r.yaml:4: training"),
        ("training: &a {seed: *a}\n", "r.yaml:4: training.seed: an alias that contains itself"),
        ("training: [1\n", "no valid YAML"),
    ],
)
def test_mistake_is_named_at_its_line(text, line, write, workplace):
    (workplace / "empty.jsonl").write_text("\n\n")
    found = refused(write(GOOD + text))
    assert len(found) == 1
    assert line in found[0]


def test_every_mistake_is_reported_at_once_in_the_order_of_the_file(write):
    text = "version: 2\nrollout:\n  branch: {plan: 0}\n  num_prompts: '8'\ntrainning: {}\nlora:\n  rank: 0\nlora: {}\n"
    found = refused(write(text), "observe.galery=3", "seed", "algorithm.beta=-1")
    assert [line.split(": ")[0] for line in found] == [
        "r.yaml:1",
        "r.yaml:3",
        "r.yaml:4",
        "r.yaml:5",
        "r.yaml:7",
        "r.yaml:8",
        "override 'algorithm.beta=-1'",
        "override 'observe.galery=3'",
        "override 'seed'",
    ]


def test_what_a_recipe_points_to_is_looked_up_beside_its_wrong_keys(write):
    text = (
        "version: 1\ntrainin: {}\ndata: {kind: jsonl, path: nowhere.jsonl}\nmodel: {kind: bagel, path: nowhere}\n"
        "rewards:\n  - scorer: shapse\n  - 3\n"
    )
    found = refused(write(text))
    for line, said in ((2, "unknown key"), (3, "no such file"), (4, "no such folder"), (6, "did you mean 'shapes'?")):
        assert any(f.startswith(f"r.yaml:{line}: ") and said in f for f in found), (line, found)
    assert refused(write("version: 1\nrewards: 3\ndata: 4\nmodel: [5]\n")), "mistakes of form alone"


def test_the_key_that_chose_the_engine_is_answered_with_the_one_that_does(write):
    for value, kind in (("true", "fsdp2"), ("false", "auto")):
        (line,) = refused(write(GOOD + f"training: {{shard_optimizer: {value}}}\n"))
        assert line == f"r.yaml:4: training.shard_optimizer: renamed; did you mean training.parallel: {{kind: {kind}}}?"
        new = [f"training.parallel={{kind: {kind}}}", "lora.enabled=false"]
        assert load_recipe(write(GOOD), new).training.parallel.kind == kind


def test_keys_that_became_the_branch_are_answered_with_it(write):
    old = GOOD + "rollout: {num_generations: 16, images_per_plan: 4, images_per_critique: 2}\n"
    new = "rollout.branch: {plan: 4, draft: 4, critique: 8, refinement: 2}"
    found = refused(write(old))
    assert [line.partition(": renamed; write ")[::2] for line in found] == [
        (f"r.yaml:4: rollout.{key}", new) for key in ("num_generations", "images_per_plan", "images_per_critique")
    ]
    branch = load_recipe(write(GOOD), [new.replace(": ", "=", 1)]).rollout.branch
    assert branch.rollouts("reason") == branch.rollouts("refine") == 16
    (line,) = refused(write(GOOD), "rollout.num_generations=4")
    assert line.endswith("renamed; write rollout.branch: {plan: 4, draft: 1, critique: 4, refinement: 1}")


@pytest.mark.parametrize(
    ("settings", "lonely"),
    [
        (["branch={plan: 1, draft: 4}"], None),
        (["branch={plan: 1, draft: 4}", "algorithm.image_loss_weight=0"], "branch.plan: 1 plan and 4 draft"),
        (["branch={plan: 4}", "algorithm.text_loss_weight=0"], None),
        (["branch={plan: 1}", "algorithm.schedule=critique_only"], None),
        (["branch={critique: 1}", "algorithm.schedule=draft_only"], None),
        (["branch={critique: 1, refinement: 4}"], None),
        (["branch={critique: 1, refinement: 4}", "algorithm.schedule=cotrain"], "branch.critique: 1 critique in a"),
        (["branch={plan: 1, draft: 1}", "algorithm.schedule=episode"], None),
        (["branch={critique: 1}", "algorithm.schedule=episode"], "branch.critique: 1 critique and 1 refinement in an"),
        (["branch={plan: 4}", "plan.enabled=false", "algorithm.image_loss_weight=0"], "branch.plan: 4 plan"),
    ],
)  # fmt: skip
def test_what_learns_needs_a_peer_in_every_kind_of_step(settings, lonely, write):
    settings = [setting if setting.startswith("algorithm") else f"rollout.{setting}" for setting in settings]
    if lonely is None:
        assert load_recipe(write(GOOD), settings)
    else:
        (line,) = refused(write(GOOD), *settings)
        assert f"rollout.{lonely}" in line and "has a peer to be compared with" in line


def test_whole_trajectories_multiply_and_are_said_and_bounded(write):
    full = ["algorithm.schedule=full", "rollout.rounds=2", "rollout.branch={plan: 2, critique: 2, refinement: 3}"]
    recipe = load_recipe(write(GOOD), full)
    said = "8 prompts x 2 plans x 2 critiques x 3 refinements in each of 2 rounds = 576 rollouts a full step, "
    assert geometry(recipe).startswith(said)
    (line,) = refused(write(GOOD), *full, "rollout.rounds=5")
    assert "rollout.branch.critique: schedule 'full' branches at every image: 124416 rollouts a step" in line


def test_a_section_that_an_override_misspells_is_named_by_the_override(write):
    (line,) = refused(write(GOOD), "algoritm.gain=paper")
    assert line == "override 'algoritm.gain=paper': algoritm: unknown key; did you mean 'algorithm'?"


def test_no_reward_is_a_mistake_of_training_but_not_of_pretraining(write):
    assert "no scorer to learn from" in refused(write("version: 1\n"))[0]
    assert load_recipe(write("version: 1\npretrain: {steps: 3}\n")).pretrain.steps == 3


def test_file_that_is_no_mapping_no_text_or_not_there(write, workplace):
    assert refused(write("- 1\n"))[0].startswith("r.yaml:1: a recipe is a mapping of sections")
    (workplace / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "no UTF-8 text" in refused("binary.yaml")[0]
    assert "did you mean 'shapes_r3'?" in refused("shapes_r4")[0]
    assert "did you mean 'shapes_r3'?" in refused("missing/shapes_r3.yml")[0]
    assert "a folder" in refused(".")[0]


def test_alias_bomb_is_refused(write):
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
    assert any("more than 20000 values" in line for line in refused(write("\n".join(lines))))


def test_extends_is_read_key_by_key_and_lists_are_replaced(write):
    write(GOOD + "training:\n  seed: 5\n  max_steps: 7\n", "base.yaml")
    recipe = load_recipe(write("extends: base.yaml\ntraining:\n  seed: 6\nrewards:\n  - scorer: length\n"))
    assert (recipe.training.seed, recipe.training.max_steps) == (6, 7)
    assert [reward.scorer for reward in recipe.rewards] == ["length"]


def test_mistakes_of_an_extended_file_are_named_there(write):
    write(GOOD + "training:\n  sed: 5\n", "base.yaml")
    found = refused(write("extends: base.yaml\nlora:\n  rnk: 2\n"))
    assert found == [
        "base.yaml:5: training.sed: unknown key; did you mean 'seed'?",
        "r.yaml:3: lora.rnk: unknown key; did you mean 'rank'?",
    ]


def test_extends_in_a_circle_or_to_nowhere(write):
    write("extends: r.yaml\n", "base.yaml")
    assert "leads back" in refused(write("extends: base.yaml\n"))[0]
    assert refused(write("version: 1\nextends: shapes_bse\n"))[0].startswith(
        "r.yaml:2: extends: shapes_bse: no such file"
    )


def test_overrides_reach_sections_list_items_and_absent_sections(write):
    overrides = ["training.seed=3", "rewards.0.weight=0.5", "rollout.draft.size=[36, 36]", "pretrain.steps=4"]
    recipe = load_recipe(write(GOOD), [*overrides, "data.tags=[counting]", "rollout.draft.guidance.text=2"])
    assert recipe.training.seed == 3
    assert recipe.rewards[0].weight == 0.5
    assert recipe.rollout.draft.size == (36, 36)
    assert recipe.pretrain.steps == 4
    assert recipe.data.tags == ("counting",)
    assert recipe.rollout.draft.guidance.text == 2.0


def test_overrides_that_lead_nowhere(write):
    found = refused(write(GOOD), "rewards.2.weight=1", "version.x=1", "a..b=1", "training.seed=[1", "=3")
    assert all(line.startswith("override '") for line in found)
    assert len(found) == 5


def test_paths_are_read_from_the_folder_of_the_recipe_that_names_them(write, workplace):
    (workplace / "inner").mkdir()
    (workplace / "inner" / "mine.py").write_text("def mine(images, **columns):\n    return [0.0] * len(images)\n")
    (workplace / "inner" / "prompts.jsonl").write_text('{"prompt": "a red circle"}\n')
    text = "version: 1\ndata: {kind: jsonl, path: prompts.jsonl}\nrewards:\n  - scorer: ./mine.py:mine\n"
    recipe = load_recipe(write(text, "inner/r.yaml"))
    assert recipe.data.path == str((workplace / "inner" / "prompts.jsonl").resolve())
    assert recipe.rewards[0].scorer == f"{(workplace / 'inner' / 'mine.py').resolve()}:mine"
    moved = load_recipe("inner/r.yaml", ["rewards.0.scorer=inner/mine.py:mine"])
    assert moved.rewards[0].scorer == recipe.rewards[0].scorer


def test_a_file_is_found_before_a_shipped_recipe_of_its_name(workplace):
    (workplace / "shapes_r3").write_text(GOOD)
    assert find_recipe("shapes_r3") == Path("shapes_r3")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["draft.sde=cps", "draft.num_sde_steps=8"], "num_sde_steps: 8 is more than the 7 steps before"),
        (["draft.sde=cps", "draft.window_size=8"], "draft.window_size: 8 is more than the 7 steps before"),
        (["refine.sde=cps", "refine.eta=1.5"], "refine.eta: must be at most 1 with sde 'cps', not 1.5"),
        (
            ["draft.sde=cps", "draft.num_steps=1", "draft.window=all"],
            "draft.num_steps: the last step of sde 'cps' carries no noise; use 2 steps or more",
        ),
        (
            ["refine.matching_noise=shared"],
            "refine.matching_noise: sde 'r3_monotonic' does not read it; use sde 'matching' or drop it",
        ),
        (["draft.num_sde_steps=9"], "draft.num_sde_steps: 9 is more than the 8 steps of num_steps; use at most 8"),
        (["draft.timestep_shift=1e9"], "draft.timestep_shift: must be at most 100"),
        (["draft.eta=1e-7"], "rollout.draft.eta: must be at least 0.01"),
        (["rollout.plan.temperature=1e-3"], "rollout.plan.temperature: must be at least 0.05"),
        (
            ["lora.branches=understanding", "training.image_learning_rate=1e-3"],
            "training.image_learning_rate: lora.branches 'understanding' trains nothing that draws; set it to null",
        ),
        (
            ["lora.branches=understanding", "balance.image_gradients=generation"],
            "balance.image_gradients: lora.branches 'understanding' trains nothing that draws; use 'all'",
        ),
        (
            ["algorithm.supervised={plan: 4}", "balance.image_gradients=generation"],
            "balance.image_gradients: supervised steps learn words and images in one gradient; use 'all'",
        ),
        (["rollout.num_prompts=1000000000"], "rollout.num_prompts: must be at most 65536"),
        (["lora.alpha=1e-30"], "lora.alpha: must be at least 0.001"),
        (["lora.rank=1000000000"], "lora.rank: must be at most 4096"),
        (["rewards.0.weight=1e300"], "rewards.0.weight: must be at most 1e+06"),
        (["training.weight_decay=1e300"], "training.weight_decay: must be at most 1"),
        (
            ["draft.guidance={text: 4, interval: [0.9, 0.99]}"],
            "draft.guidance.interval: none of the steps lies in it (t = 1.00, 0.88, ",
        ),
        (["num_parts=65"], "num_parts: a step's 64 rollouts do not make 65 batches; use 64 or fewer"),
        (["draft.size=[40, 36]"], "draft.size: 40 is above 36, which is what the model draws; use [36, 36]"),
        (["draft.size=[30, 36]"], "30 pixels are not a multiple of 12, which is what the model draws; use [24, 36] or"),
        (["draft.size=[24, 24]"], "the images of the data 'shapes' have 36 pixels a side; use [36, 36]"),
        (
            ["draft.num_sde_steps=8", "training.token_budget=64"],
            "training.token_budget: 64 is less than one draft, 88 image tokens and its words; raise it",
        ),
        (
            ["rewards.0.scorer=win_rate", "rewards.0.params={scorer: sharpness}", "num_parts=9"],
            "num_parts: 'win_rate' compares peers, so 8 groups do not make 9 batches; use 8 or fewer",
        ),
        (["pretrain.model.latent_patch_size=10"], "latent_patch_size: 10 does not divide the world's 36"),
        (["pretrain.model.hidden_size=102"], "pretrain.model.hidden_size: 102 does not divide over 4 num_heads"),
        (["pretrain.model.num_layer=2"], "pretrain.model.num_layer: unknown key; did you mean 'num_layers'?"),
        (["pretrain.model.num_layers='2'"], "pretrain.model.num_layers: expected a whole number, got '2'; remove the"),
        (["pretrain.start=nowhere"], "pretrain.start: no such folder: "),
        (["data.tags=[countng]"], "data.tags: no kind of prompt is called 'countng'; did you mean 'counting'?"),
        (["data.exclude_tags=[x]"], "data.exclude_tags: no kind of prompt is called 'x'; kinds: single_object, "),
        (["pretrain.position_weight=2.0"], "renamed; write pretrain.prompt_weights: {position: 2.0}"),
        (["pretrain.prompt_weights={postion: 2.0}"], "no kind of prompt is called 'postion'; did you mean 'position'?"),
        (["pretrain.draw_weights={postion: 2.0}"], "no kind of prompt is called 'postion'; did you mean 'position'?"),
    ],
)  # fmt: skip
def test_what_the_first_draw_or_update_would_refuse_is_refused_here(settings, line, write):
    sections = ("draft", "refine", "num_parts")
    settings = [f"rollout.{setting}" if setting.startswith(sections) else setting for setting in settings]
    (found,) = refused(write(GOOD), *settings)
    assert line in found


def test_sizes_are_those_of_the_model_that_is_named(write, workplace):
    BagelConfig().to_folder(workplace / "bagel")
    (workplace / "p.jsonl").write_text('{"prompt": "a red cup"}\n')
    text = GOOD + "model: {kind: bagel, path: bagel}\ndata: {kind: jsonl, path: p.jsonl}\nrollout: {protocol: bagel}\n"
    (line,) = refused(write(text), "rollout.draft.size=[500, 512]")
    assert line.endswith(
        "500 pixels are not a multiple of 16, which is what the model draws; use [496, 512] or [512, 512]"
    )
    assert "1040 is above 1024" in refused("r.yaml", "rollout.draft.size=[1040, 1024]")[0]
    (line,) = refused("r.yaml", "rollout.draft.size=[1024, 1024]")
    assert "training.token_budget: 4096 is less than one refinement, 12552 image tokens and its words" in line
    large = ["rollout.draft.size=[1024, 1024]", "training.token_budget=16384"]
    assert load_recipe("r.yaml", large).rollout.draft.size == (1024, 1024)
    named = ["model.path=ByteDance-Seed/BAGEL-7B-MoT", "rollout.draft.size=[500, 500]"]
    assert "use [496, 496] or [512, 512]" in refused("r.yaml", *named)[0]
    (workplace / "bagel" / "llm_config.json").unlink()
    assert "not a BAGEL folder: it has no llm_config.json" in refused("r.yaml", "rollout.draft.size=[512, 512]")[0]


@pytest.mark.parametrize(
    ("setting", "package"),
    [
        ("training.optim=adamw_torch_8bit", "torchao"),
        ("balance.aggregator=mgda", "torchjd"),
        ("observe.trackers=[wandb]", "wandb"),
        ("training.deepspeed={zero_optimization: {stage: 2}}", "deepspeed"),
    ],
)
def test_packages_that_settings_need_are_asked_for(setting, package, write, monkeypatch):
    monkeypatch.setattr("r3_rl.recipe_checks.find_spec", lambda name: None)
    (line,) = refused(write(GOOD), setting)
    assert f": needs the package {package}; pip install " in line


@pytest.mark.parametrize(("aggregator", "solver"), [("upgrad", "quadprog"), ("cagrad", "cvxpy")])
def test_an_aggregator_needs_its_solver_too(aggregator, solver, write, monkeypatch):
    monkeypatch.setattr("r3_rl.recipe_checks.find_spec", lambda name: None if name == solver else object())
    (line,) = refused(write(GOOD), f"balance.aggregator={aggregator}")
    assert f"balance.aggregator: needs the package {solver}; pip install " in line
