"""A recipe's trainer: its panels, prompts, adapter, and the images that its world draws for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from r3_rl.assemble import (
    LoadedPolicy,
    adapter_settings,
    build_panel,
    loop_settings,
    prompt_stream,
    trainer_arguments,
    world_tags,
)
from r3_rl.evaluate.loading import start_from
from r3_rl.nodes import Node, given_image
from r3_rl.pixels import open_image
from r3_rl.policy.base import Example
from r3_rl.policy.words import unknown_words
from r3_rl.recipe import Recipe
from r3_rl.recipe.pretraining import PretrainSection
from r3_rl.scoring.batch import ScoreBatch, to_uint8
from r3_rl.scoring.panel import Panel
from r3_rl.training.arguments import free_layers
from r3_rl.training.schedules import AskedNodes, SyntheticNodes
from r3_rl.training.trainer import R3Trainer
from r3_rl.types import Prompt
from r3_rl.worlds.base import World, find_world
from r3_rl.worlds.files.questions import FileQuestion, load_questions
from r3_rl.worlds.sets import mixed_drafts

_QUESTIONS = 77
"""Keeps the seeds of questions that are trained on apart from those of measured ones."""


def build_trainer(recipe: Recipe, loaded: LoadedPolicy, folder: Path) -> R3Trainer:
    """The trainer of a recipe."""
    panel = build_panel(recipe, recipe.rewards, base=Path.cwd())
    held_out = build_panel(recipe, recipe.eval_rewards, base=Path.cwd(), held_out=True) if recipe.eval_rewards else None
    loaded.policy.checkpoint_activations(recipe.training.gradient_checkpointing)
    peft_config = adapter_settings(recipe)
    if recipe.lora.start is not None:
        start_from(loaded, Path(recipe.lora.start))
        peft_config = None
    elif peft_config is None:
        free_layers(loaded.policy)
    world, tags = (find_world(recipe.data.world), world_tags(recipe.data)) if recipe.data.world else (None, ())
    return R3Trainer(
        model=loaded.policy,
        reward_funcs=panel,
        args=trainer_arguments(recipe, folder),
        train_dataset=prompt_stream(recipe),
        processing_class=loop_settings(recipe.rollout),
        peft_config=peft_config,
        eval_reward_funcs=held_out,
        base_fingerprint=loaded.fingerprint,
        synthetic=_synthetic(recipe, world, panel, tags) if world else None,
        questions=_questions(recipe, loaded, world),
        about=partial(nodes_about, world) if world else None,
        examples=partial(right_examples, world, tags) if world else None,
    )


def _synthetic(recipe: Recipe, world: World[Any], panel: Panel, tags: Sequence[str]) -> SyntheticNodes:
    right_share = recipe.algorithm.tree.perfect_ratio
    return partial(synthetic_nodes, world, panel=panel, tags=tags, right_share=right_share)


def _questions(recipe: Recipe, loaded: LoadedPolicy, world: World[Any] | None) -> AskedNodes | None:
    """Whoever asks the questions that are trained on: a file, else the world."""
    if recipe.data.questions is not None:
        known = partial(unknown_words, loaded.policy.tokenizer)
        return partial(nodes_of_file, load_questions(recipe.data.questions, unknown_words=known))
    return partial(asked_nodes, world) if world else None


def nodes_of_file(asked: Sequence[FileQuestion], count: int, seed: int) -> list[Node]:
    """Questions of a file, each once before one comes again."""
    rng = np.random.default_rng((seed, _QUESTIONS))
    order = [int(i) for _ in range(-(-count // len(asked))) for i in rng.permutation(len(asked))]
    chosen = [asked[i] for i in order[:count]]
    return [given_image(Prompt(text=q.text, columns=q.columns), open_image(q.image)) for q in chosen]


def nodes_about(world: World[Any], images: Sequence[Node], seed: int) -> list[Node]:
    """Questions about drawn images, of every kind in turn. The world's inspector reads what is drawn; an image of which
    no answer is sure is left out."""
    rng, kinds = np.random.default_rng((seed, _QUESTIONS)), list(world.question_kinds)
    found: list[Node] = []
    pictures = np.stack([image.image.numpy() for image in images])
    for picture, scene in zip(pictures, world.inspect(pictures), strict=True):
        asked = world.ask(picture, scene, kinds[len(found) % len(kinds)], rng)
        if asked is not None:
            columns = {"answer": asked.answer, "kind": asked.kind}
            found.append(given_image(Prompt(text=asked.text, columns=columns), torch.from_numpy(picture)))
    return found


def asked_nodes(world: World[Any], count: int, seed: int) -> list[Node]:
    """Images that the world draws, each with a question about it for a prompt, and its answer."""
    return [
        given_image(Prompt(text=q.text, columns={"answer": q.answer, "kind": q.kind}), torch.from_numpy(q.image))
        for q in world.questions(count, seed=np.random.default_rng((seed, _QUESTIONS)))
    ]


def right_examples(world: World[Any], tags: Sequence[str], task: str, count: int, seed: int) -> Sequence[Example]:
    """Examples of a task as in the world's pretraining, without a wrong one, about prompts of these kinds."""
    settings = PretrainSection(prompt_weights={tag: float(tag in tags) for tag in world.tags})
    return world.examples(settings, seed=seed)(task, count)


def synthetic_nodes(
    world: World[Any], count: int, seed: int, *, panel: Panel, tags: Sequence[str], right_share: float
) -> list[Node]:
    """Images that the world draws, as nodes. They are scored by the panel that scores their refinements: a gain is a
    difference of what one judge says."""
    drawn = mixed_drafts(world, count, right_share=right_share, tags=tags, seed=seed)
    images = [torch.from_numpy(this.image) for this in drawn]
    batch = ScoreBatch(
        prompts=[this.prompt for this in drawn],
        images=[to_uint8(image) for image in images],
        texts=[""] * len(drawn),
        groups=range(len(drawn)),
    )
    return [
        given_image(this.prompt, image, verdict=verdict)
        for this, image, verdict in zip(drawn, images, panel.score(batch, counted=False), strict=True)
        if verdict.total is not None
    ]
