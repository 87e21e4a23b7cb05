"""The verb `r3 pretrain`: makes the embedded model from a recipe, measures it and writes its folder and card."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from r3_rl.assemble import load_tokenizer, loop_settings
from r3_rl.errors import InputError
from r3_rl.evaluate.shapes import ShapesBench, measure_critiques, measure_edits
from r3_rl.observe.environment import environment
from r3_rl.observe.progress import RunProgress, duration
from r3_rl.observe.recorder import Recorder, new_run_folder
from r3_rl.observe.statistics import Interval, share
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
from r3_rl.training.pretrain import run_pretraining
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
    folder = new_run_folder(recipe.training.output_dir, "pretrain")
    recorder = Recorder(folder)
    recorder.document("recipe.resolved.yaml", dump_resolved(recipe))
    recorder.document("environment.json", environment(dtype="float32"))
    policy = new_policy(settings, seed=recipe.training.seed)
    print(f"run folder {folder}: {sum(p.numel() for p in policy.model.parameters()):,} parameters")
    begin = time.monotonic()
    steps = 0
    legs = settings.legs()
    with RunProgress("pretrain", total_steps=sum(leg.steps for leg in legs)) as progress:
        for number, leg in enumerate(legs):
            seed = recipe.training.seed + 1000 * number
            for _, numbers in run_pretraining(policy, _batches(leg, seed), leg, seed=seed):
                steps += 1
                recorder.metrics(steps, numbers)
                progress.update(steps, numbers)
                if steps % SAVE_EVERY == 0:
                    _save(policy, folder / "latest", torch.float32)
            _save(policy, folder / f"leg-{number + 1}", torch.float32)
    wall_s = time.monotonic() - begin
    weights = _save(policy, folder / "weights", torch.bfloat16)
    print(f"{steps} steps in {duration(wall_s)}; weights in {weights}; measuring")
    measured = measure_base(policy, recipe, bench, num_edits=num_edits)
    (weights / "README.md").write_text(model_card(recipe, measured, steps=steps, wall_s=wall_s), encoding="utf-8")
    summary = {name: interval.as_dict() for name, interval in measured.items()}
    recorder.document("summary.json", {**summary, "steps": steps, "wall_s": round(wall_s, 1)})
    for name, interval in measured.items():
        print(f"{name:30} {100 * interval.mean:5.1f} [{100 * interval.low:5.1f}, {100 * interval.high:5.1f}]")
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
    # words alone teach relations slowly and cost little, so most of the plans without image are about positions
    plan_tags = {tag: 4.0 if tag == "position" else 0.4 for tag in TAGS}

    def batches(kind: str, count: int) -> list[Example]:
        return examples(
            stream,
            kind,
            count,
            plan_noise=settings.plan_noise,
            image_noise=settings.image_noise,
            edit_noise=settings.edit_noise,
            critique_noise=settings.critique_noise,
            tags=plan_tags if kind == "plan" else tags,
        )

    return batches


def _save(policy: BagelPolicy, folder: Path, dtype: torch.dtype) -> Path:
    """Writes the model's folder; the weights in memory stay as they are."""
    model = policy.model
    copy = Bagel(model.config)
    copy.load_state_dict(model.state_dict())
    save_bagel(copy.to(dtype), policy.reader.autoencoder, policy.reader.tokenizer, folder)
    return folder


def measure_base(
    policy: BagelPolicy, recipe: Recipe, bench: ShapesBench | None = None, *, num_edits: int = 1000
) -> dict[str, Interval]:
    """Loop, fixed drafts, questions and edits with the true instruction, with 95 % intervals."""
    policy.module.requires_grad_(False)
    settings = loop_settings(recipe.rollout)
    bench = bench or ShapesBench(num_prompts=1000, num_fixed=1000, num_right=500, num_questions=1000)
    measured = bench.measure(policy, settings).intervals()
    measured["edits_with_true_instruction"] = share(measure_edits(policy, num_edits, settings))
    measured["critique_useful"] = share(measure_critiques(policy, num_edits, settings))
    return {name: i for name, i in measured.items() if not name.startswith("swap_")}


def model_card(recipe: Recipe, measured: dict[str, Interval], *, steps: int, wall_s: float) -> str:
    """What the weights are, how they were made and what they can do."""
    assert recipe.pretrain is not None
    here = environment(dtype="float32")
    rows = "\n".join(
        f"| {name} | {100 * i.mean:.1f} % | {100 * i.low:.1f} - {100 * i.high:.1f} | {i.count} |"
        for name, i in measured.items()
    )
    return f"""# The embedded policy of r3-rl

BAGEL's architecture in small ({json.dumps(recipe.pretrain.model.model_dump())}), pretrained on the synthetic shapes
world by `r3 pretrain recipes/shapes_pretrain.yaml`: {steps} steps of {sum(recipe.pretrain.batch.model_dump().values())}
examples in {duration(wall_s)} on {here.get("processor", "a CPU")}, seed {recipe.training.seed}. Weights: Apache-2.0.

**Deliberate headroom.** {100 * recipe.pretrain.plan_noise:.0f} % of the text-to-image plans contradict their prompt and
{100 * recipe.pretrain.image_noise:.0f} % of the images depart from their plan, so that reinforcement learning has
something to correct. The base's scores are lower than what the same compute could reach.

Measured on held-out prompts, drafts and questions; texts sampled at temperature 1, questions by the likeliest words:

| | share | 95 % interval | n |
|---|---|---|---|
{rows}
"""


__all__ = ["Pretrained", "measure_base", "new_policy", "pretrain"]
