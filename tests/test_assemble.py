"""A recipe's settings arrive: a value that is checked and then changes nothing would be a lie (trap 16)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args

import numpy as np
import pytest
from pydantic import BaseModel

from r3_rl import assemble
from r3_rl.assemble import adapter_settings, build_panel, loop_settings, prompt_stream, trainer_arguments, world_tags
from r3_rl.errors import InputError
from r3_rl.recipe import Recipe
from r3_rl.scoring.batch import ScoreBatch
from r3_rl.stages.protocol import Protocol, protocol_named
from r3_rl.training.config import R3Config
from r3_rl.types import Prompt

DRAWING = {"window_size": 4, "guidance": {"text": 2.0}}
BASE: dict[str, Any] = {
    "version": 1,
    "rewards": [{"scorer": "shapes"}],
    "rollout": {"draft": DRAWING, "refine": DRAWING},
    "algorithm": {"schedule": "draft_only"},
}
CHANGED = {
    "algorithm.frozen_stages": ("critique",),
    "algorithm.progressive.plateau_steps": 5,
    "training.image_learning_rate": 1e-4,
    "rollout.protocol": "bagel",
    "rollout.draft.window": None,  # with window_size 4 only `random` is right; tested among the loops
    "rollout.refine.window": None,
    "rollout.draft.matching_noise": None,  # only `matching` reads it; tested below
    "rollout.refine.matching_noise": None,
    "rollout.draft.size": [36, 24],
    **{f"rollout.{stage}.guidance.{scale}": 3.0 for stage in ("draft", "refine") for scale in ("text", "image")},
    "rollout.draft.guidance.interval": [0.2, 0.9],
    "rollout.refine.guidance.interval": [0.2, 0.9],
    "algorithm.num_iterations": 2,
    "algorithm.text_loss": "gspo",
    "algorithm.image_loss": "cispo",
    "balance.aggregator": "equal_norms",
    "balance.image_gradients": "generation",
    "algorithm.epsilon_high": 0.3,
    "training.time_budget_s": 5.0,
    "lora.rank_generation": 4,
    "lora.branches": "understanding",
    "observe.trackers": ["tensorboard"],
}
ELSEWHERE = {
    "training.score_cache": "assemble.py",
    "training.deepspeed": "training/zero.py",  # needs a launcher: tests/training/test_processes.py
    # of several processes: tests/training/test_shards.py
    **{f"training.parallel.{key}": "training/fsdp.py" for key in ("replicate", "keep_gathered", "reduce_dtype")},
    "training.parallel.kind": "training/engines.py",
    "training.base_measured": "evaluate/recording.py",  # tests/evaluate/test_kept_base.py
    "training.eval_steps": "evaluate/run.py",
    "training.eval_prompts": "evaluate/loop_bench.py",
    "training.eval_items": "evaluate/loop_bench.py",
    "training.output_dir": "evaluate/run.py",
    "training.gradient_checkpointing": "evaluate/build.py",
    "algorithm.supervised": "training/arguments.py",  # a section: tests/training/test_teaching.py
    "lora.start": "evaluate/build.py",  # needs an adapter: tests/study/test_study.py
    "training.num_threads": "cli/run_verbs.py",
    "observe.gallery": "evaluate/run.py",
    "observe.keep_trajectories": "evaluate/recording.py",
}
"""Settings that are no arguments of the trainer or the loop, and the file that reads them."""


def leaves(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from leaves(inner, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", field


SECTIONS = ("rollout", "algorithm", "balance", "training", "lora", "observe")
SETTINGS = dict(leaf for name in SECTIONS for leaf in leaves(Recipe.model_fields[name].annotation, name))


def other_value(path: str, default: Any, field: Any) -> Any:
    if path in CHANGED:
        return CHANGED[path]
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 1
    if isinstance(default, float):
        return default / 2 if default else 0.5
    parts = get_args(field.annotation)  # of `Literal[...] | None`: the Literal and NoneType
    choices = [choice for part in parts for choice in get_args(part) or (part,) if choice != default]
    assert choices, f"{path}: say in CHANGED what else it can be"
    return choices[0]


def with_value(path: str, value: Any) -> Recipe:
    tree = {**BASE, "rollout": {k: dict(v) if isinstance(v, dict) else v for k, v in BASE["rollout"].items()}}
    *sections, leaf = path.split(".")
    at = tree
    for name in sections:
        at[name] = dict(at.get(name, {}))
        at = at[name]
    at[leaf] = value
    if path == "algorithm.answer_own_share":  # a share of nothing is refused
        at["answer_share"] = value
    if path == "rollout.protocol":
        tree["model"] = {"kind": "bagel", "path": "weights"}
    return Recipe.model_validate(tree)


ARRIVES_AS = {
    "rollout.plan.enabled": None,  # no plan, no adapter: nothing is left of their other settings
    "lora.enabled": None,
    "rollout.protocol": protocol_named("bagel"),
    "rollout.refine.context": True,
}
"""What a changed setting becomes, where it is not handed on unchanged."""


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested dataclasses and mappings; a protocol is one leaf."""
    if is_dataclass(value) and not isinstance(value, Protocol):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if not isinstance(value, dict):
        return {name: tuple(value) if isinstance(value, list) else value}
    return {path: leaf for key, inner in value.items() for path, leaf in flat(inner, f"{name}.{key}").items()}


def assembled(recipe: Recipe, folder) -> dict[str, Any]:
    """Everything that the live objects are told, by name."""
    with build_panel(recipe, recipe.rewards, base=folder) as panel:
        heard = {"aggregate": panel._aggregate, "max_failed_fraction": panel._max_failed_fraction}
    arguments = trainer_arguments(recipe, folder).to_dict()
    told = {"arguments": arguments, "loop": loop_settings(recipe.rollout), "panel": heard}
    return flat({**told, "adapter": adapter_settings(recipe)})


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, assembled(Recipe.model_validate(BASE), folder)


@pytest.mark.parametrize("path", [p for p in SETTINGS if p not in ELSEWHERE and CHANGED.get(p, "") is not None])
def test_every_setting_arrives(path, usual):
    folder, expected = usual
    value: Any = Recipe.model_validate(BASE)
    for name in path.split("."):
        value = getattr(value, name)
    wanted = other_value(path, value, SETTINGS[path])
    found = assembled(with_value(path, wanted), folder)
    moved = {name: found.get(name) for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)}
    wanted = ARRIVES_AS.get(path, tuple(wanted) if isinstance(wanted, list) else wanted)
    assert moved, "it arrives nowhere"
    assert all(value == wanted for value in moved.values()), "it arrives as something else, or moves another setting"


@pytest.mark.parametrize("stage", ["draft", "refine"])
def test_the_noise_of_matching_arrives_at_its_stage(stage):
    drawing = {**DRAWING, "sde": "matching", "matching_noise": "shared"}
    loop = loop_settings(with_value(f"rollout.{stage}", drawing).rollout)
    found = {"draft": loop.draft.matching_noise, "refine": loop.refine.matching_noise}
    assert found == {"draft": "own", "refine": "own", stage: "shared"}


def test_settings_read_elsewhere_are_read_there(request):
    for path, file in ELSEWHERE.items():
        text = (request.config.rootpath / "r3_rl" / file).read_text()
        assert path.rpartition(".")[2] in text, path


def test_the_trainers_own_defaults_are_the_recipes(tmp_path):
    """Who builds R3Trainer by hand trains as a recipe without settings does."""
    found = trainer_arguments(Recipe.model_validate({"version": 1, "rewards": [{"scorer": "shapes"}]}), tmp_path)
    plain = R3Config(found.output_dir, save_total_limit=2, run_name=tmp_path.name, disable_tqdm=True)
    assert found == plain


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"branch": {"plan": 0}}, "branch.plan=0: Input should be greater than or equal to 1"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0: Input should be greater than 0"),
        ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type='cosin': Input should be"),
        ({"logging_steps": 0}, "logging_steps=0"),
        ({"schedule": "critique_only", "text_loss_weight": 0.0}, "schedule 'critique_only' learns from texts alone"),
        ({"save_strategy": "epoch"}, "save_strategy='epoch'; steps or no"),
    ],
)
def test_arguments_that_a_recipe_could_not_have_are_refused_by_name(given, named):
    with pytest.raises(InputError, match=f"R3Config {named}" if "=" in named else named):
        R3Config("out", **given)


def test_prompts_of_the_world_keep_to_the_kinds_asked_for():
    tree = {**BASE, "data": {"tags": ["counting"]}}
    recipe = Recipe.model_validate(tree)
    assert world_tags(recipe.data) == ("counting",)
    without = Recipe.model_validate({**BASE, "data": {"exclude_tags": ["position"]}})
    assert "position" not in world_tags(without.data) and len(world_tags(without.data)) > 5
    assert {p.columns["tag"] for p in prompt_stream(recipe).batch(0)} == {"counting"}
    seeded = Recipe.model_validate({**tree, "data": {**tree["data"], "seed": 1}})
    texts = [[p.text for step in range(4) for p in prompt_stream(r).batch(step)] for r in (recipe, seeded)]
    assert texts[0] != texts[1]


def test_scores_outlive_the_run_where_the_recipe_names_a_folder(tmp_path):
    tree = {**BASE, "rewards": [{"scorer": "sharpness"}], "training": {"score_cache": str(tmp_path / "scores")}}
    recipe = Recipe.model_validate(tree)
    image = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    hits = []
    for _ in range(2):
        with build_panel(recipe, recipe.rewards, base=tmp_path) as panel:
            panel.score(ScoreBatch(prompts=[Prompt(text="a")], images=[image]))
            hits.append(panel.metrics()["scores/cache_hit_fraction"])
    assert hits == [0.0, 1.0]


def test_both_experts_get_the_backend_that_suits_the_machine(tmp_path, monkeypatch):
    from r3_rl.recipe.sampling import ModelSection
    from tests.docs.world import world_folder

    place = str(world_folder(tmp_path / "w"))
    monkeypatch.setattr(assemble.torch.cuda, "is_available", lambda: False)
    for wanted, got in (("auto", "matmul"), ("sdpa", "sdpa")):
        loaded = assemble.load_policy(ModelSection(path=place, attention=wanted))
        assert loaded.policy.model.decoder.backend == got
        assert not any(p.requires_grad for p in loaded.policy.module.parameters())
