"""Recipe -> live objects: the only file that knows every room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from r3_rl.flow.guidance import Guidance
from r3_rl.policy.adapters import AdapterSettings
from r3_rl.policy.backbone import Backbone
from r3_rl.policy.base import Drawing, Policy, Sampling
from r3_rl.policy.hub import fetch, is_hub_id
from r3_rl.policy.registry import backbone_of
from r3_rl.policy.weights import digest_of
from r3_rl.recipe import Recipe, RewardSection
from r3_rl.recipe.sampling import DataSection, DrawingSection, ModelSection, RolloutSection
from r3_rl.rollout.prompts import PromptStream
from r3_rl.scoring.cache import ScoreCache
from r3_rl.scoring.isolated import START_S, load_isolated
from r3_rl.scoring.panel import Panel, ScorerSpec
from r3_rl.scoring.registry import load_scorer, short_name
from r3_rl.stages.protocol import protocol_named
from r3_rl.stages.settings import DrawingPlan, LoopSettings
from r3_rl.training.config import R3Config
from r3_rl.worlds.base import chosen_tags, find_world
from r3_rl.worlds.files.load import load_prompts


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedPolicy:
    """A policy and where its base came from."""

    policy: Policy
    backbone: Backbone
    folder: Path
    fingerprint: str
    """Of its weights, which an adapter remembers."""
    dtype: torch.dtype


def base_folder(model: ModelSection, *, world: str | None = None) -> Path:
    """The folder of a recipe's base weights, fetched from the hub where `path` is a name there; without a path those
    that ship with a world, by default the embedded one, under the name `base`."""
    if model.path is not None and is_hub_id(model.path):
        return fetch(model.path, revision=model.revision, weights=not model.random_init)
    return Path(model.path) if model.path else find_world(world).weights_folder(model.base)


def load_policy(model: ModelSection, *, world: str | None = None, device: str | None = None) -> LoadedPolicy:
    """The base policy of a recipe, frozen and without an adapter; `world` as in `base_folder`."""
    folder = base_folder(model, world=world)
    backbone = backbone_of(folder, model.kind)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = pick_dtype(model.dtype, place)
    policy = backbone.load(folder, dtype=dtype, device=place, random_init=model.random_init, attention=model.attention)
    if model.random_init:  # an adapter of these does not fit the weights that the folder may hold
        companions = {f"{name}.": module for name, module in policy.companions.items()}
        marks = digest_of({"": policy.module, **companions})
    else:
        marks = backbone.fingerprint(folder)
    return LoadedPolicy(policy=policy, backbone=backbone, folder=folder, fingerprint=marks, dtype=dtype)


def pick_dtype(name: str, device: str) -> torch.dtype:
    """`auto` is bfloat16 where the device has units for it, else float32."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.startswith("cuda"):
        return torch.bfloat16
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


def loop_settings(rollout: RolloutSection) -> LoopSettings:
    """How the policy writes and draws."""
    return LoopSettings(
        protocol=protocol_named(rollout.protocol),
        plan=rollout.plan.build(Sampling) if rollout.plan.enabled else None,
        critique=rollout.critique.build(Sampling),
        draft=_drawing(rollout.draft, rollout.draft.size),
        refine=_drawing(rollout.refine, rollout.draft.size),
        history=rollout.history,
        show_prompt=rollout.refine.context == "instruction+prompt",
    )


def _drawing(section: DrawingSection, size: tuple[int, int]) -> DrawingPlan:
    drawing = section.build(
        Drawing,
        shift=section.timestep_shift,
        convention=section.sde,
        guidance=section.guidance.build(Guidance),
        size=(size[0], size[1]),
    )
    return section.build(DrawingPlan, drawing=drawing)


def adapter_settings(recipe: Recipe) -> AdapterSettings | None:
    """None trains the full weights."""
    lora, balance = recipe.lora, recipe.balance
    if not lora.enabled:
        return None
    return lora.build(AdapterSettings, routing=balance.routing, gate_temperature=balance.gate_temperature)


def build_panel(recipe: Recipe, rewards: Sequence[RewardSection], *, base: Path, held_out: bool = False) -> Panel:
    """The scorers of a recipe, loaded. `base`: the folder that `./file.py:name` starts from."""
    return Panel(
        [_scorer_spec(reward, base) for reward in rewards],
        aggregate=recipe.algorithm.multi_objective_aggregation,
        max_failed_fraction=recipe.algorithm.max_failed_fraction,
        cache=ScoreCache(folder=recipe.training.score_cache),
        held_out=held_out,
    )


def _scorer_spec(reward: RewardSection, base: Path) -> ScorerSpec:
    params, limit_s = dict(reward.params), reward.timeout_s
    if reward.isolate:
        scorer: Any = load_isolated(reward.scorer, params, base, timeout_s=limit_s, memory_gb=reward.memory_gb)
        limit_s += START_S  # its process keeps the limit itself; after its end it has to start again
    else:
        scorer = load_scorer(reward.scorer, params, base)
    name = reward.name or short_name(reward.scorer)
    return ScorerSpec(name=name, scorer=scorer, weight=reward.weight, params=params, timeout_s=limit_s)


def world_tags(data: DataSection) -> tuple[str, ...]:
    """The kinds of prompts that a recipe asks its world for."""
    return chosen_tags(find_world(data.kind), data.tags, data.exclude_tags)


def prompt_stream(recipe: Recipe) -> PromptStream:
    """The training prompts."""
    data, count = recipe.data, recipe.rollout.num_prompts
    if data.world:
        world, tags = find_world(data.kind), world_tags(data)
        return PromptStream(
            lambda n, seed: world.prompts(n, split="train", tags=tags, seed=seed), num_prompts=count, seed=data.seed
        )
    assert data.path is not None, "the recipe asks for the path of every other kind"
    prompts = load_prompts(
        data.kind, data.path, prompt_key=data.prompt_key, tags=data.tags, exclude_tags=data.exclude_tags
    )
    return PromptStream(prompts, num_prompts=count, seed=data.seed)


def trainer_arguments(recipe: Recipe, run_folder: Path) -> R3Config:
    """The arguments of a recipe's trainer."""
    return R3Config.of_recipe(
        recipe,
        str(run_folder / "checkpoints"),
        save_total_limit=2,
        run_name=run_folder.name,
        guards=recipe.guards,
        disable_tqdm=True,
    )
