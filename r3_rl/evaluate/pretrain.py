"""The verb `r3 pretrain`: makes the embedded model from a recipe, measures it and writes its folder and card."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from r3_rl.assemble import loop_settings
from r3_rl.errors import InputError
from r3_rl.evaluate.base_card import base_card
from r3_rl.evaluate.shapes import ShapesBench
from r3_rl.observe.environment import environment
from r3_rl.observe.measures import greedy, plain_names
from r3_rl.observe.progress import RunProgress, duration
from r3_rl.observe.recorder import Recorder, new_run_folder
from r3_rl.observe.statistics import Interval
from r3_rl.observe.text_table import figure
from r3_rl.policy.backbone import Backbone
from r3_rl.policy.base import Example, Policy
from r3_rl.policy.registry import backbone_of, find
from r3_rl.recipe import Recipe
from r3_rl.recipe.pretraining import PretrainSection
from r3_rl.recipe.sampling import RECOGNISED
from r3_rl.recipe_io import dump_resolved
from r3_rl.training.pretrain import Average, run_pretraining
from r3_rl.worlds.shapes.data import ShapesStream
from r3_rl.worlds.shapes.drawing import BACKGROUND, IMAGE_SIZE
from r3_rl.worlds.shapes.language import build_tokenizer
from r3_rl.worlds.shapes.pretraining import examples
from r3_rl.worlds.shapes.prompts import TAGS
from r3_rl.worlds.shapes.shipped import weights_folder

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
    backbone = pretrained_backbone(recipe)
    policy = new_policy(backbone, settings, seed=recipe.training.seed)
    num_parameters = sum(p.numel() for p in policy.module.parameters())
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
                    backbone.save(policy, folder / "latest")
                if steps in settings.snapshots:
                    with average.applied(policy.module):  # a snapshot as the run would end here
                        backbone.save(policy, folder / f"step-{steps}", dtype=torch.bfloat16)
            backbone.save(policy, folder / f"leg-{number + 1}")
            leg_seconds.append(time.monotonic() - begin)
    weights = folder / "weights"
    backbone.save(policy, weights, dtype=torch.bfloat16)
    print(f"{steps} steps in {duration(sum(leg_seconds))}; weights in {weights}; measuring")
    measured = measure_base(policy, recipe, bench, num_edits=num_edits)
    card = base_card(
        recipe,
        measured,
        architecture=backbone.describe(settings.model),
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


def pretrained_backbone(recipe: Recipe) -> Backbone:
    """The backbone of the model that is made: that of the weights that the recipe goes on from, else the one that it
    names, else that of the embedded model."""
    if recipe.pretrain is not None and recipe.pretrain.start is not None:
        return backbone_of(recipe.pretrain.start, recipe.model.kind)
    kind = recipe.model.kind
    return backbone_of(weights_folder()) if kind in RECOGNISED else find(kind)


def new_policy(backbone: Backbone, settings: PretrainSection, *, seed: int) -> Policy:
    """A fresh model of the recipe's sizes, or the weights that the recipe goes on from."""
    if settings.start is not None:
        return backbone.load(Path(settings.start), dtype=torch.float32, device="cpu")
    return backbone.new(settings.model, build_tokenizer(), image_size=IMAGE_SIZE, background=BACKGROUND, seed=seed)


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


def measure_base(
    policy: Policy, recipe: Recipe, bench: ShapesBench | None = None, *, num_edits: int = 1000
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
