"""The verb `r3 pretrain`: makes the embedded model from a recipe, measures it and writes its folder and card."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from r3_rl.assemble import load_tokenizer, loop_settings
from r3_rl.errors import InputError
from r3_rl.evaluate.base_card import base_card
from r3_rl.evaluate.shapes import ShapesBench
from r3_rl.observe.environment import environment
from r3_rl.observe.measures import greedy, plain_names
from r3_rl.observe.progress import RunProgress, duration
from r3_rl.observe.recorder import Recorder, new_run_folder
from r3_rl.observe.statistics import Interval
from r3_rl.observe.text_table import figure
from r3_rl.policy.bagel.autoencoder import Autoencoder
from r3_rl.policy.bagel.checkpoint import load_bagel, save_bagel
from r3_rl.policy.bagel.config import (
    AutoencoderConfig,
    BagelConfig,
    LanguageConfig,
    ResizeRule,
    VisionConfig,
)
from r3_rl.policy.bagel.model import Bagel, init_weights
from r3_rl.policy.bagel.policy import BagelPolicy
from r3_rl.policy.bagel.reader import Reader, special_token_ids
from r3_rl.policy.base import Example
from r3_rl.recipe import Recipe
from r3_rl.recipe.pretraining import ModelSizeSection, PretrainSection
from r3_rl.recipe_io import dump_resolved
from r3_rl.training.pretrain import Average, run_pretraining
from r3_rl.worlds.shapes.data import ShapesStream
from r3_rl.worlds.shapes.drawing import BACKGROUND, IMAGE_SIZE
from r3_rl.worlds.shapes.language import build_tokenizer
from r3_rl.worlds.shapes.pretraining import examples
from r3_rl.worlds.shapes.prompts import TAGS

SAVE_EVERY = 100


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """What pretraining left."""

    folder: Path
    """Weights, configuration, tokenizer and model card: a `model.path`."""
    measured: dict[str, Interval]


def pretrain(recipe: Recipe, *, bench: ShapesBench | None = None, num_edits: int = 1000) -> Pretrained:
    """Runs the recipe's `pretrain` section. `bench`: what the result is measured on (1,000 of each by default)."""
    settings = recipe.pretrain
    if settings is None:
        raise InputError("the recipe has no section 'pretrain'", hint="start from shapes_pretrain")
    if unknown := sorted(set(settings.draw_weights) - set(TAGS)):
        raise InputError(
            f"pretrain.draw_weights: no kind of prompt is called {', '.join(unknown)}", hint=f"kinds: {', '.join(TAGS)}"
        )
    folder = new_run_folder(recipe.training.output_dir, "pretrain")
    recorder = Recorder(folder)
    recorder.document("recipe.resolved.yaml", dump_resolved(recipe))
    machine = environment(dtype="float32")
    recorder.document("environment.json", machine)
    policy = new_policy(settings, seed=recipe.training.seed)
    num_parameters = sum(p.numel() for p in policy.model.parameters())
    print(f"run folder {folder}: {num_parameters:,} parameters")
    steps = 0
    leg_seconds: list[float] = []
    legs = settings.legs()
    with RunProgress("pretrain", total_steps=sum(leg.steps for leg in legs)) as progress:
        for number, leg in enumerate(legs):
            begin = time.monotonic()
            seed = recipe.training.seed + 1000 * number
            average = Average(policy.module)
            for _, numbers in run_pretraining(policy, _batches(leg, seed), leg, seed=seed, average=average):
                steps += 1
                recorder.metrics(steps, numbers)
                progress.update(steps, numbers)
                if steps % SAVE_EVERY == 0:
                    _save(policy, folder / "latest", torch.float32)
                if steps in settings.snapshots:
                    _save_average(policy, average, folder / f"step-{steps}")
            _save(policy, folder / f"leg-{number + 1}", torch.float32)
            leg_seconds.append(time.monotonic() - begin)
    weights = _save(policy, folder / "weights", torch.bfloat16)
    print(f"{steps} steps in {duration(sum(leg_seconds))}; weights in {weights}; measuring")
    measured = measure_base(policy, recipe, bench, num_edits=num_edits)
    card = base_card(
        recipe,
        measured,
        num_parameters=num_parameters,
        leg_seconds=leg_seconds,
        machine=machine,
    )
    (weights / "README.md").write_text(card, encoding="utf-8")
    summary = {name: interval.as_dict() for name, interval in measured.items()}
    recorder.document("summary.json", {**summary, "steps": steps, "wall_s": round(sum(leg_seconds), 1)})
    for name, interval in measured.items():
        print(f"{name:34} {figure(name, interval)}")
    return Pretrained(folder=weights, measured=measured)


def new_policy(settings: PretrainSection, *, seed: int) -> BagelPolicy:
    """A fresh model of the recipe's sizes, or the weights that the recipe goes on from."""
    if settings.start is not None:
        folder = Path(settings.start)
        bagel = load_bagel(folder)
        tokenizer = load_tokenizer(folder)
    else:
        tokenizer = build_tokenizer()
        config = embedded_config(settings.model, tokenizer.get_vocab_size(), special_token_ids(tokenizer))
        bagel = init_weights(Bagel(config), seed=seed)
    autoencoder = Autoencoder(bagel.config.autoencoder)
    return BagelPolicy(bagel, Reader(config=bagel.config, tokenizer=tokenizer, autoencoder=autoencoder))


def embedded_config(size: ModelSizeSection, vocab_size: int, special: dict[str, int]) -> BagelConfig:
    """The embedded size of BAGEL for the shapes world: pixels as latents, no resizing."""
    keep = ResizeRule(longest=IMAGE_SIZE, shortest=IMAGE_SIZE, stride=size.latent_patch_size)
    return BagelConfig(
        llm=LanguageConfig(
            vocab_size=vocab_size,
            hidden_size=size.hidden_size,
            intermediate_size=size.intermediate_size,
            num_hidden_layers=size.num_layers,
            num_attention_heads=size.num_heads,
            num_key_value_heads=size.num_kv_heads,
        ),
        vit=VisionConfig(
            hidden_size=size.vit_hidden_size,
            intermediate_size=size.vit_intermediate_size,
            num_hidden_layers=size.vit_num_layers,
            num_attention_heads=size.vit_num_heads,
            image_size=IMAGE_SIZE,
            patch_size=size.vit_patch_size,
            image_mean=BACKGROUND,
            image_std=0.25,
        ),
        # the ground is zero for both towers: as a constant far from zero it drowns what lies on it (lab book)
        autoencoder=AutoencoderConfig(
            kind="identity", z_channels=3, downsample=1, scale_factor=1.0, shift_factor=2 * BACKGROUND - 1
        ),
        latent_patch_size=size.latent_patch_size,
        max_latent_size=IMAGE_SIZE // size.latent_patch_size,
        vit_max_num_patch_per_side=IMAGE_SIZE // size.vit_patch_size,
        prediction="data",
        vae_resize=keep,
        vit_resize=keep,
        special_token_ids=special,
    )


def _batches(settings: PretrainSection, seed: int):  # type: ignore[no-untyped-def]
    stream = ShapesStream(seed=seed + 1)
    tags = {tag: settings.position_weight if tag == "position" else 1.0 for tag in TAGS}
    draw_tags = {tag: weight * settings.draw_weights.get(tag, 1.0) for tag, weight in tags.items()}
    # words alone teach relations slowly and cost little, so most of the plans without image are about positions
    plan_tags = {tag: settings.draw_weights.get(tag, 1.0) * (4.0 if tag == "position" else 0.4) for tag in TAGS}
    tags_of = {"text_to_image": draw_tags, "plan": plan_tags}

    def batches(kind: str, count: int) -> list[Example]:
        return examples(
            stream,
            kind,
            count,
            plan_noise=settings.plan_noise,
            plan_errors=settings.plan_errors,
            image_noise=settings.image_noise,
            edit_noise=settings.edit_noise,
            critique_noise=settings.critique_noise,
            tags=tags_of.get(kind, tags),
        )

    return batches


def _save(policy: BagelPolicy, folder: Path, dtype: torch.dtype) -> Path:
    """Writes the model's folder; the weights in memory stay as they are."""
    model = policy.model
    copy = Bagel(model.config)
    copy.load_state_dict(model.state_dict())
    save_bagel(copy.to(dtype), policy.reader.autoencoder, policy.reader.tokenizer, folder)
    return folder


def _save_average(policy: BagelPolicy, average: Average, folder: Path) -> None:
    """A snapshot as the run would end here: the moving average in the precision that ships."""
    with average.applied(policy.module):
        _save(policy, folder, torch.bfloat16)


def measure_base(
    policy: BagelPolicy, recipe: Recipe, bench: ShapesBench | None = None, *, num_edits: int = 1000
) -> dict[str, Interval]:
    """Measure a base on everything that runs are measured on, with 95 % intervals, greedy and sampled.

    Args:
        policy: frozen by this.
        recipe: for its loop.
        bench: the sets; by default 1,000 prompts, questions and fixed drafts.
        num_edits: true edits and true plans of the default bench.

    Returns:
        Intervals by the names of `observe.measures`, greedy before sampled; without the swap test, which wants a
        trained policy.
    """
    policy.module.requires_grad_(False)
    bench = bench or ShapesBench(
        num_prompts=1000,
        num_fixed=1000,
        num_right=500,
        num_questions=1000,
        num_pairs=500,
        num_plans=num_edits,
        num_edits=num_edits,
    )
    measured = bench.measure(policy, loop_settings(recipe.rollout)).intervals()
    ordered = [name for plain in plain_names(measured) for name in (greedy(plain), plain) if name in measured]
    return {name: measured[name] for name in ordered if not name.startswith("swap_")}


__all__ = ["Pretrained", "measure_base", "new_policy", "pretrain"]
