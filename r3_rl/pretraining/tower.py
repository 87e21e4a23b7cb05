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
from torch import nn
from torch.nn import functional as F

from r3_rl.errors import InputError
from r3_rl.policy.backbone import Backbone
from r3_rl.policy.base import Policy
from r3_rl.pretraining.steps import optimizers
from r3_rl.recipe.pretraining import PretrainSection
from r3_rl.worlds.base import Squares, World

DECAY = 0.3
"""Last share of the updates, in which the rates fall to 0."""


def train_tower(
    policy: Policy, backbone: Backbone, world: World[Any], settings: PretrainSection, *, seed: int
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train in place `tower_steps` times, with a linear head for each field on what the tower tells the decoder; yield
    each step's number, loss and share of right answers. The heads are thrown away.

    Raises:
        InputError: the backbone has no such tower, the world no squares, or one sees others than the other has.
    """
    if not settings.tower_steps:
        return
    policy.module.requires_grad_(True)
    rng = np.random.default_rng(seed)
    seen, images = _next_ones(world, settings.tower_images, rng)
    told = backbone.look(policy, images)
    heads = _heads(told, seen, settings, world, seed=seed)
    optims = [*optimizers(policy, settings), torch.optim.AdamW(heads.parameters(), lr=settings.adam_lr)]
    base_rates = [o.param_groups[0]["lr"] for o in optims]
    for step in range(settings.tower_steps):
        seen, images = _next_ones(world, settings.tower_images, rng)
        assert seen is not None
        loss, right = _judged(heads(backbone.look(policy, images)), seen)
        loss.backward()
        done = step / settings.tower_steps
        factor = min(1.0, (step + 1) / settings.warmup_steps, max((1 - done) / DECAY, 0.01))
        for optim, base in zip(optims, base_rates, strict=True):
            optim.param_groups[0]["lr"] = base * factor
            optim.step()
            optim.zero_grad(set_to_none=True)
        yield step, {"tower/loss": loss.item(), "tower/right": right}


def _next_ones(world: World[Any], number: int, rng: np.random.Generator) -> tuple[Squares | None, torch.Tensor]:
    """Half of the images are wrong for their prompt, so that the tower sees malformed objects too."""
    prompts = world.prompts(number, split="train", seed=rng)
    scenes = [(world.scene if i % 2 else world.wrong_scene)(prompt, rng) for i, prompt in enumerate(prompts)]
    return world.squares(scenes), torch.from_numpy(world.roughen(world.draw(scenes), rng))


def _heads(
    told: torch.Tensor | None, seen: Squares | None, settings: PretrainSection, world: World[Any], *, seed: int
) -> nn.Linear:
    """From what the tower tells to the words of all fields, side by side; refuses what does not fit."""
    key = f"pretrain.tower_steps: {settings.tower_steps}"
    if told is None:
        raise InputError(f"{key}: this backbone has no tower that can be trained alone", hint="set it to 0")
    if seen is None:
        raise InputError(f"{key}: images of the world '{world.name}' are not made of squares", hint="set it to 0")
    if told.shape[1] != seen.labels.shape[1]:
        raise InputError(
            f"{key}: the tower sees {told.shape[1]} patches, the world has {seen.labels.shape[1]} squares",
            hint="set pretrain.model.vit_patch_size to the side of a square",
        )
    heads = nn.Linear(told.shape[-1], sum(seen.sizes))
    with torch.no_grad():
        spread = torch.randn(heads.weight.shape, generator=torch.Generator().manual_seed(seed))
        heads.weight.copy_(spread * told.shape[-1] ** -0.5)
        heads.bias.zero_()
    return heads


def _judged(told: torch.Tensor, seen: Squares) -> tuple[torch.Tensor, float]:
    """Mean cross entropy, summed over fields, and the share of squares with something in all of whose fields are
    right."""
    labels = torch.from_numpy(seen.labels)
    loss = torch.zeros(())
    right = torch.ones(labels.shape[:2], dtype=torch.bool)
    for field, logits in enumerate(told.split(seen.sizes, dim=-1)):
        wanted = labels[..., field]
        loss = loss + F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-1)
        right &= (logits.argmax(-1) == wanted) | (wanted < 0)
    full = (labels >= 0).all(-1)
    return loss, float(right[full].float().mean())
