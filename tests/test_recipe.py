"""The schema itself: strictness, problems between fields, geometry, descriptions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ValidationError

from r3_rl.errors import RecipeError
from r3_rl.recipe import Recipe, geometry
from r3_rl.recipe.wording import section_at
from r3_rl.recipe_io import json_schema

ZERO = {"zero_optimization": {"stage": 2}}


def recipe(**sections) -> Recipe:
    return Recipe.model_validate({"version": 1, "rewards": [{"scorer": "shapes"}], **sections})


def leaves(section: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name in section.model_fields:
        inner = section_at((*path, name))
        if inner is None:
            yield (*path, name)
        else:
            yield from leaves(inner, (*path, name))


def test_every_field_is_described():
    assert len(list(leaves(Recipe))) > 100
    for *around, name in leaves(Recipe):
        section = section_at(tuple(around))
        assert section.model_fields[name].description, (*around, name)


def test_recipe_is_frozen_and_values_are_not_converted():
    made = recipe()
    with pytest.raises(ValidationError):
        made.training.seed = 3
    with pytest.raises(ValidationError):
        recipe(training={"seed": True})


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"model": {"kind": "bagel"}}, "ships no weights"),
        ({"model": {"base": "first", "path": "weights"}}, "only for kind 'embedded' without a path"),
        ({"model": {"random_init": True, "path": "x"}}, "contradict"),
        ({"rollout": {"protocol": "bagel"}}, "the protocol 'compact'"),
        ({"rollout": {"refine": {"guidance": {"interval": [0.5, 0.5]}}}}, "no interval within"),
        ({"rollout": {"refine": {"guidance": {"image": 1.5}}}}, "does nothing while guidance is off"),
        ({"rollout": {"draft": {"window": "first", "window_size": 4}}}, "does not read it"),
        ({"rollout": {"draft": {"window_size": 1}}}, "does not fit into window_size 1"),
        ({"data": {"tags": ["counting"], "exclude_tags": ["counting"]}}, "both kept and left out"),
        ({"data": {"kind": "tiif", "path": "x", "prompt_key": "text"}}, "no column of TIIF"),
        ({"algorithm": {"text_loss_weight": 0.0, "image_loss_weight": 0.0}}, "nothing would be learned"),
        ({"algorithm": {"schedule": "critique_only", "text_loss_weight": 0.0}}, "learns from texts alone"),
        ({"lora": {"branches": "understanding", "rank_generation": 4}}, "no adapter on the generation branch"),
        ({"rewards": [{"scorer": "shapes", "weight": 0.0}]}, "every scorer weighs 0"),
        ({"algorithm": {"num_iterations": 3}}, "50 falls between the 3 updates .* use 48 or 51"),
        ({"algorithm": {"multi_objective_aggregation": "normalize_then_sum"}}, "schedule 'tree' needs"),
        ({"lora": {"branches": "generation"}}, "learn nothing from texts"),
        (
            {"lora": {"enabled": False}, "model": {"dtype": "bfloat16"}, "training": {"parallel": {"kind": "ddp"}}},
            "full weights are trained in float32",
        ),
        ({"training": {"deepspeed": {"zero_optimization": {"stage": 3}}}}, "ZeRO 3 shards full weights; use 2, or"),
        ({"training": {"deepspeed": {"train_batch_size": 8}}}, "stage None: use 1, 2 or 3"),
        ({"training": {"deepspeed": ZERO, "optim": "adamw_8bit"}}, "is sharded already; use 'adamw_torch'"),
        ({"training": {"deepspeed": {**ZERO, "bf16": {"enabled": True}}}}, "adapters are trained in float32"),
        ({"training": {"deepspeed": {**ZERO, "bf16": {"enabled": True}}}, "lora": {"enabled": False}}, "to bfloat16"),
        ({"training": {"deepspeed": ZERO}, "lora": {"enabled": False}, "model": {"dtype": "auto"}}, "in float32"),
        ({"training": {"parallel": {"kind": "fsdp2"}, "deepspeed": ZERO}}, "'fsdp2' does not read training.deepspeed"),
        ({"training": {"parallel": {"kind": "deepspeed"}}}, "missing; give DeepSpeed's settings"),
        ({"training": {"parallel": {"kind": "ddp", "replicate": 2}}}, "kind 'ddp' does not read it"),
        ({"training": {"parallel": {"replicate": 2}, "deepspeed": ZERO}}, "places its shards itself"),
        (
            {"training": {"parallel": {"keep_gathered": True}, "deepspeed": ZERO}},
            "DeepSpeed places its shards",
        ),
        ({"training": {"parallel": {"kind": "fsdp2"}, "optim": "paged_adamw_8bit"}}, "bitsandbytes knows no shards"),
        ({"pretrain": {"apart_fraction": 0.6, "ramp_fraction": 0.6}}, "their sum passes 1"),
    ],
)
def test_fields_that_contradict_each_other(sections, problem):
    with pytest.raises(ValidationError, match=problem):
        recipe(**sections)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_geometry_names_prompts_peers_and_processes(world_size):
    sentence = geometry(recipe(), world_size)
    assert sentence.startswith("8 prompts x 8 plans = 64 rollouts a reason step, ")
    assert f"{world_size} process" in sentence


@pytest.mark.parametrize(("world_size", "hint"), [(3, "use 6 or 9"), (16, "use 16")])
def test_geometry_that_does_not_divide_names_the_nearest_numbers(world_size, hint):
    with pytest.raises(RecipeError, match=hint):
        geometry(recipe(), world_size)


def test_what_a_process_has_too_little_of_is_refused():
    few = recipe(rollout={"num_prompts": 4, "branch": {"plan": 2, "critique": 2}, "num_parts": 4})
    assert geometry(few, 2)
    with pytest.raises(RecipeError, match=r"num_parts: a process has 2 rollouts, .* 4 batches; use 2 or fewer"):
        geometry(few, 4)
    batch = recipe(algorithm={"scale_rewards": "batch"})
    assert geometry(batch)
    with pytest.raises(RecipeError, match=r"scale_rewards: 'batch' would divide .* 2 processes; use 'none' or 'group'"):
        geometry(batch, 2)


def test_json_schema_explains_every_field_and_allows_extends():
    schema = json_schema()
    assert schema["$defs"]["TrainingSection"]["properties"]["seed"]["description"] == "Seed of the run."
    assert schema["$defs"]["AlgorithmSection"]["properties"]["gain"]["enum"] == ["paper", "released", "repair"]
    assert schema["additionalProperties"] is False
    assert schema["anyOf"] == [{"required": ["version"]}, {"required": ["extends"]}]
