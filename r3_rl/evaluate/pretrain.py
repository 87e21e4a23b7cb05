"""The verb `r3 pretrain`: makes the model of a world from a recipe, measures it and writes its folder and card."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from r3_rl.errors import InputError
from r3_rl.evaluate.base import Bench, find_bench
from r3_rl.evaluate.base_card import base_card
from r3_rl.observe.environment import environment
from r3_rl.observe.evaluation import Evaluation
from r3_rl.observe.lock import sole_writer
from r3_rl.observe.measures import greedy, plain_names
from r3_rl.observe.progress import RunProgress, duration
from r3_rl.observe.recorder import Recorder, new_run_folder
from r3_rl.observe.statistics import Interval
from r3_rl.observe.text_table import figure
from r3_rl.policy.adapter_files import RECIPE_FILE
from r3_rl.policy.backbone import Backbone
from r3_rl.policy.base import Policy
from r3_rl.policy.registry import pretrained_backbone
from r3_rl.pretraining.sketch import train_sketch
from r3_rl.pretraining.steps import Average, run_pretraining
from r3_rl.pretraining.tower import train_tower
from r3_rl.recipe import Recipe
from r3_rl.recipe.pretraining import PretrainSection
from r3_rl.recipe_io import dump_resolved
from r3_rl.worlds.base import World, find_world

SAVE_EVERY = 100


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """What pretraining left."""

    folder: Path
    """Weights, configuration, tokenizer and model card: a `model.path`."""
    measured: dict[str, Interval]


def pretrain(recipe: Recipe, *, name: str = RECIPE_FILE, bench: Bench[Any] | None = None) -> Pretrained:
    """Run the recipe's `pretrain` section.

    Args:
        recipe: whose `data.kind` is a world.
        name: of the recipe, for the card's line that runs it again; by default the run folder's copy.
        bench: what the result is measured on; None takes the world's, with its `base_sizes`.

    Raises:
        InputError: there is no such section, or it weighs kinds of prompts that the world does not have.
    """
    settings = recipe.pretrain
    if settings is None:
        raise InputError("the recipe has no section 'pretrain'", hint="`r3 recipes ls` lists those that have one")
    world = find_world(recipe.data.world)
    for key in ("prompt_weights", "draw_weights"):
        if unknown := sorted(set(getattr(settings, key)) - set(world.tags)):
            raise InputError(
                f"pretrain.{key}: no kind of prompt is called {', '.join(unknown)}",
                hint=f"kinds: {', '.join(world.tags)}",
            )
    folder = new_run_folder(recipe.training.output_dir, "pretrain")
    with sole_writer(folder):
        return _pretrain(recipe, settings, world, folder, name=name, bench=bench)


def _pretrain(
    recipe: Recipe,
    settings: PretrainSection,
    world: World[Any],
    folder: Path,
    *,
    name: str,
    bench: Bench[Any] | None,
) -> Pretrained:
    """The run itself, in a folder that nobody else writes."""
    recorder = Recorder(folder)
    recorder.document("recipe.resolved.yaml", dump_resolved(recipe))
    machine = environment(dtype="float32")
    recorder.document("environment.json", machine)
    backbone = pretrained_backbone(recipe.model.kind, settings.start)
    policy = new_policy(backbone, settings, world, seed=recipe.training.seed)
    num_parameters = sum(p.numel() for p in policy.module.parameters())
    print(f"run folder {folder}: {num_parameters:,} parameters")
    steps = 0
    leg_seconds: list[float] = []
    legs = settings.legs()
    tower = train_tower(policy, backbone, world, settings, seed=recipe.training.seed)
    seen, tower_seconds = _teach("tower", tower, settings.tower_steps)
    sketch = train_sketch(policy, backbone, world, settings, seed=recipe.training.seed)
    planned, sketch_seconds = _teach("sketch", sketch, settings.sketch_steps)
    told = {**seen, **planned}
    with RunProgress("pretrain", total_steps=sum(leg.steps for leg in legs)) as progress:
        for number, leg in enumerate(legs):
            begin = time.monotonic()
            seed = recipe.training.seed + 1000 * number
            average = Average(policy.module)
            examples = world.examples(leg, seed=seed)
            for _, numbers in run_pretraining(policy, examples, leg, seed=seed, average=average):
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
    wall_s = tower_seconds + sketch_seconds + sum(leg_seconds)
    print(f"{steps} steps in {duration(wall_s)}; weights in {weights}; measuring")
    measured = measure_base(policy, recipe, bench)
    card = base_card(
        recipe,
        measured,
        name=name,
        architecture=backbone.describe(backbone.size_section(**settings.model)),
        num_parameters=num_parameters,
        tower_seconds=tower_seconds,
        sketch_seconds=sketch_seconds,
        leg_seconds=leg_seconds,
        machine=machine,
    )
    (weights / "README.md").write_text(card, encoding="utf-8")
    figures = dict(measured.before)
    summary = {name: interval.as_dict() for name, interval in figures.items()}
    recorder.document("summary.json", {**summary, **told, "steps": steps, "wall_s": round(wall_s, 1)})
    for name, interval in figures.items():
        print(f"{name:34} {figure(name, interval)}")
    return Pretrained(folder=weights, measured=figures)


def _teach(name: str, lesson: Iterator[tuple[int, dict[str, float]]], num_steps: int) -> tuple[dict[str, float], float]:
    """Give a lesson with its progress; return its last figures, empty without a lesson, and its seconds."""
    begin = time.monotonic()
    numbers: dict[str, float] = {}
    if num_steps:
        with RunProgress(name, total_steps=num_steps) as progress:
            for step, numbers in lesson:
                progress.update(step + 1, numbers)
        print(f"{name}: {numbers[f'{name}/right']:.1%} of objects named correctly after {num_steps} steps")
    return numbers, time.monotonic() - begin


def new_policy(backbone: Backbone, settings: PretrainSection, world: World[Any], *, seed: int) -> Policy:
    """A fresh model of the recipe's sizes, or the weights that the recipe goes on from."""
    if settings.start is not None:
        return backbone.load(Path(settings.start), dtype=torch.float32, device="cpu")
    size = backbone.size_section(**settings.model)
    return backbone.new(size, world.tokenizer(), image_size=world.image_size, background=world.background, seed=seed)


def measure_base(policy: Policy, recipe: Recipe, bench: Bench[Any] | None = None) -> Evaluation:
    """Measure a base on everything that runs are measured on, with 95 % intervals, greedy and sampled.

    Args:
        policy: frozen by this.
        recipe: for its loop and its world.
        bench: None takes the world's, with its `base_sizes`.

    Returns:
        The phase `before` alone, greedy before sampled; without the swap test, which wants a trained policy.
    """
    policy.module.requires_grad_(False)
    world = find_world(recipe.data.world)
    bench = bench or find_bench(world.bench, recipe, **world.base_sizes)
    rows = bench.run(policy, bench.items())
    measured = bench.figures(rows)
    ordered = [name for plain in plain_names(measured) for name in (greedy(plain), plain) if name in measured]
    kept = {name: measured[name] for name in ordered if not name.startswith("swap_")}
    return Evaluation(before=kept, after={}, differences={}, words=rows.words)


__all__ = ["Pretrained", "measure_base", "new_policy", "pretrain"]
