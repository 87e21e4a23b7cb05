"""Plans and edits before images: from words and noise alone the model learns what each square of the image is to hold.

Most of what a painter's loss looks at shows in the noisy image itself, so that what was asked for is read late: with
66,000 drawings one in seven objects was what its plan says, in its place (lab book). Named, squares are learned at
once. An edit has to name what it keeps, too, so that the image before it is read to the last object.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from r3_rl.policy.backbone import Backbone
from r3_rl.policy.base import Policy
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
    next_ones, generator = world.examples(settings, seed=seed), torch.Generator().manual_seed(seed)

    def lesson() -> tuple[torch.Tensor, Squares]:
        examples = [*next_ones("text_to_image", settings.sketch_plans), *next_ones("edit", settings.sketch_edits)]
        images = torch.stack([example.image for example in examples if example.image is not None])
        seen = world.squares(world.inspect(images.numpy()))
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
