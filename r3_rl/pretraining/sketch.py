"""Plans before images: from a plan and noise alone the model learns what each square of the image is to hold.

Most of what a painter's loss looks at shows in the noisy image itself, so that the plan is read late: with 66,000
drawings one in seven objects was what its plan says, in its place (lab book). Named, squares are learned at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from r3_rl.modalities import TextPiece
from r3_rl.policy.backbone import Backbone
from r3_rl.policy.base import Example, Policy
from r3_rl.pretraining.naming import refuse_misfit, teach_names
from r3_rl.recipe.pretraining import PretrainSection
from r3_rl.worlds.base import Squares, World


def train_sketch(
    policy: Policy, backbone: Backbone, world: World[Any], settings: PretrainSection, *, seed: int
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train in place `sketch_steps` times; yield each step's number, loss and shares of right answers.

    Raises:
        InputError: the backbone draws no noise, the world has no squares, or a latent is no square.
    """
    if not settings.sketch_steps:
        return
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)

    def lesson() -> tuple[torch.Tensor, Squares]:
        prompts = world.prompts(settings.sketch_plans, split="train", seed=rng)
        scenes = [world.scene(prompt, rng) for prompt in prompts]
        images, seen = torch.from_numpy(world.draw(scenes)), world.squares(scenes)
        examples = [
            Example(context=(TextPiece(text=prompt.text),), answer=world.plan_text(scene), image=image)
            for prompt, scene, image in zip(prompts, scenes, images, strict=True)
        ]
        held = backbone.sketch(policy, examples, generator)
        refuse_misfit(
            f"pretrain.sketch_steps: {settings.sketch_steps}",
            None if held is None else held.shape[1],
            seen,
            world=world.name,
            what="the painter has {} latents",
            setting="pretrain.model.latent_patch_size",
        )
        assert held is not None and seen is not None
        return held, seen

    for step, found in teach_names(policy, lesson, settings, num_steps=settings.sketch_steps, seed=seed):
        yield step, {f"sketch/{name}": value for name, value in found.items()}
