"""The understanding tower alone, before anything else is trained: it learns to tell what is in each square of an image.

Released models begin with a tower that was pretrained on images and texts. A tower of random weights that is trained
through the decoder alone learned where objects are in two hundred steps and, in three thousand, never their shape: what
it says of an object is small beside the table of places, and the decoder learns to do without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from r3_rl.policy.backbone import Backbone
from r3_rl.policy.base import Policy
from r3_rl.pretraining.naming import refuse_misfit, teach_names
from r3_rl.recipe.pretraining import PretrainSection
from r3_rl.worlds.base import Squares, World


def train_tower(
    policy: Policy, backbone: Backbone, world: World[Any], settings: PretrainSection, *, seed: int
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train in place `tower_steps` times; yield each step's number, loss and share of right answers.

    Raises:
        InputError: the backbone has no such tower, the world no squares, or one sees others than the other has.
    """
    if not settings.tower_steps:
        return
    rng = np.random.default_rng(seed)

    def lesson() -> tuple[torch.Tensor, Squares]:
        seen, images = _next_ones(world, settings.tower_images, rng)
        told = backbone.look(policy, images)
        refuse_misfit(
            f"pretrain.tower_steps: {settings.tower_steps}",
            None if told is None else told.shape[1],
            seen,
            world=world.name,
            what="the tower sees {} patches",
            setting="pretrain.model.vit_patch_size",
        )
        assert told is not None and seen is not None
        return told, seen

    for step, found in teach_names(policy, lesson, settings, num_steps=settings.tower_steps, seed=seed):
        yield step, {"tower/loss": found["loss"], "tower/right": found["right"]}


def _next_ones(world: World[Any], number: int, rng: np.random.Generator) -> tuple[Squares | None, torch.Tensor]:
    """Half of the images are wrong for their prompt, so that the tower sees malformed objects too."""
    prompts = world.prompts(number, split="train", seed=rng)
    scenes = [(world.scene if i % 2 else world.wrong_scene)(prompt, rng) for i, prompt in enumerate(prompts)]
    return world.squares(scenes), torch.from_numpy(world.roughen(world.draw(scenes), rng))
