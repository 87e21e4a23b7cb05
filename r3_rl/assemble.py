"""Recipe -> live objects: the only file that knows every room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from r3_rl import ranks
from r3_rl.flow.guidance import Guidance
from r3_rl.policy.adapters import AdapterSettings
from r3_rl.policy.backbone import Backbone
from r3_rl.policy.base import Drawing, Policy, Sampling
from r3_rl.policy.hub import fetch, is_hub_id
from r3_rl.policy.registry import backbone_of
from r3_rl.recipe import Recipe, RewardSection
from r3_rl.recipe.learning import LoraSection
from r3_rl.recipe.sampling import DataSection, DrawingSection, ModelSection, RolloutSection, WritingSection
from r3_rl.rollout.prompts import PromptStream, load_prompts
from r3_rl.scoring.cache import ScoreCache
from r3_rl.scoring.isolated import START_S, load_isolated
from r3_rl.scoring.panel import Panel, ScorerSpec
from r3_rl.scoring.registry import load_scorer, short_name
from r3_rl.stages.protocol import protocol_named
from r3_rl.stages.settings import DrawingPlan, LoopSettings
from r3_rl.training.config import R3Config
from r3_rl.training.sharded import checked_settings
from r3_rl.worlds.base import chosen_tags, find_world


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedPolicy:
    """A policy and where its base came from."""

    policy: Policy
    backbone: Backbone
    folder: Path
    fingerprint: str
    dtype: torch.dtype


def base_folder(model: ModelSection, *, world: str | None = None) -> Path:
    """The folder of a recipe's base weights, fetched from the hub where `path` is a name there; without a path those
    that ship with a world, by default the embedded one."""
    if model.path is not None and is_hub_id(model.path):
        return fetch(model.path, revision=model.revision, weights=not model.random_init)
    return Path(model.path) if model.path else find_world(world).weights_folder()


def load_policy(model: ModelSection, *, world: str | None = None, device: str | None = None) -> LoadedPolicy:
    """The base policy of a recipe, frozen and without an adapter; `world` as in `base_folder`."""
    folder = base_folder(model, world=world)
    backbone = backbone_of(folder, model.kind)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = pick_dtype(model.dtype, place)
    policy = backbone.load(folder, dtype=dtype, device=place, random_init=model.random_init, attention=model.attention)
    return LoadedPolicy(
        policy=policy, backbone=backbone, folder=folder, fingerprint=backbone.fingerprint(folder), dtype=dtype
    )


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
        plan=_sampling(rollout.plan) if rollout.plan.enabled else None,
        critique=_sampling(rollout.critique),
        draft=_drawing(rollout.draft, rollout.draft.size),
        refine=_drawing(rollout.refine, rollout.draft.size),
        show_prompt=rollout.refine.context == "instruction+prompt",
    )


def _sampling(section: WritingSection) -> Sampling:
    return Sampling(max_new_tokens=section.max_new_tokens, temperature=section.temperature, top_p=section.top_p)


def _drawing(section: DrawingSection, size: tuple[int, int]) -> DrawingPlan:
    guidance = section.guidance
    return DrawingPlan(
        drawing=Drawing(
            num_steps=section.num_steps,
            shift=section.timestep_shift,
            convention=section.sde,
            eta=section.eta,
            guidance=Guidance(
                text=guidance.text,
                image=guidance.image,
                interval=guidance.interval,
                renorm=guidance.renorm,
                renorm_min=guidance.renorm_min,
            ),
            size=(size[0], size[1]),
        ),
        window=section.window,
        num_sde_steps=section.num_sde_steps,
        window_size=section.window_size,
        shared_noise=section.shared_noise,
    )


def adapter_settings(lora: LoraSection) -> AdapterSettings | None:
    """None trains the full weights."""
    if not lora.enabled:
        return None
    return AdapterSettings(
        rank=lora.rank,
        rank_generation=lora.rank_generation,
        alpha=lora.alpha,
        dropout=lora.dropout,
        branches=lora.branches,
    )


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


def trainer_arguments(recipe: Recipe, run_folder: Path, *, processes: int | None = None) -> R3Config:
    """The recipe's numbers under the trainer's names. processes: of the run, where this one rehearses it alone."""
    t, a, r = recipe.training, recipe.algorithm, recipe.rollout
    return R3Config(
        output_dir=str(run_folder / "checkpoints"),
        max_steps=t.max_steps,
        learning_rate=t.learning_rate,
        image_learning_rate=t.image_learning_rate,
        lr_scheduler_type=t.lr_scheduler,
        warmup_steps=t.warmup_steps,
        adam_beta1=t.adam_beta1,
        adam_beta2=t.adam_beta2,
        adam_epsilon=t.adam_epsilon,
        weight_decay=t.weight_decay,
        max_grad_norm=t.max_grad_norm,
        seed=t.seed,
        save_steps=t.save_steps,
        save_total_limit=2,
        logging_steps=recipe.observe.log_every,
        report_to=list(recipe.observe.trackers) or "none",
        # told to use the CPU, accelerate passes DeepSpeed over in silence
        use_cpu=not (torch.cuda.is_available() or t.deepspeed),
        deepspeed=checked_settings(t.deepspeed) if t.deepspeed else None,
        bf16=t.trains_in_bfloat16,
        disable_tqdm=True,
        remove_unused_columns=False,
        optim=t.optim,
        num_prompts=r.num_prompts,
        branch=r.branch.model_dump(),
        num_parts=r.num_parts,
        num_iterations=a.num_iterations,
        beta=a.beta,
        epsilon=a.epsilon,
        epsilon_high=a.epsilon_high,
        scale_rewards=a.scale_rewards,
        image_beta=a.image_beta,
        image_kl=a.image_kl,
        image_epsilon=a.image_epsilon,
        image_loss_weight=a.image_loss_weight,
        text_loss_weight=a.text_loss_weight,
        schedule=a.schedule,
        gain=a.gain,
        format_mode=a.format_mode,
        format_weight=a.format_weight,
        refine_node_choice=a.tree.node_choice,
        refine_perfect_ratio=a.tree.perfect_ratio,
        reason_steps=a.tree.reason_steps,
        refine_depth=a.tree.depth,
        refine_synthetic_fraction=a.tree.synthetic_fraction,
        apart_fraction=a.progressive.apart_fraction,
        ramp_fraction=a.progressive.ramp_fraction,
        rounds=r.rounds,
        token_budget=t.token_budget,
        max_zero_variance_steps=a.max_zero_variance_steps,
        time_budget_s=t.time_budget_s,
        probe_every=recipe.balance.probe_every,
        aggregator=recipe.balance.aggregator,
        optimizer_parts=(processes or ranks.count()) if t.shard_optimizer else 0,
    )
