"""What any world gives by its doors: verdicts on images, and images with prompts that nobody drew with a model.

The same arguments give the same items, on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from r3_rl.types import Prompt, Verdict
from r3_rl.worlds.base import Tags, World

if TYPE_CHECKING:
    import torch

WRONG_SEED = 20_000
PAIRS_SEED = 30_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """An image that the world drew for a prompt."""

    prompt: Prompt
    image: np.ndarray
    """float32 [3, H, W] in [0, 1], with the flaws that a model's images have."""
    scene: Any
    """What it shows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A right image of a prompt, and one that is a single edit away from it and from being right."""

    right: Drawn
    near_miss: Drawn


def verdicts(world: World[Any], images: Sequence[torch.Tensor], prompts: Sequence[Prompt]) -> list[Verdict]:
    """Inspect and judge images.

    Args:
        images: [n] of [3, H, W] in [0, 1], on the CPU.
        prompts: [n] what each was drawn for, with the world's columns.
    """
    if not images:
        return []
    seen = world.inspect(np.stack([image.numpy() for image in images]))
    return [world.judge(scene, prompt) for scene, prompt in zip(seen, prompts, strict=True)]


def wrong_drafts(
    world: World[Any], count: int, *, split: str = "held_out", tags: Tags = None, seed: int = WRONG_SEED
) -> list[Drawn]:
    """Return images that do not satisfy their prompts.

    Reflection is judged on those of held-out prompts: own wrong drafts alone mislead, since a policy that got better
    keeps only its hard ones.

    >>> from r3_rl.worlds.base import find_world
    >>> world = find_world()
    >>> [world.judge(d.scene, d.prompt).total for d in wrong_drafts(world, 2)]
    [0.0, 0.0]
    """
    rng = np.random.default_rng(seed)
    prompts = world.prompts(count, split=split, tags=tags, seed=rng)
    return _drawn(world, prompts, [world.wrong_scene(prompt, rng) for prompt in prompts], rng)


def mixed_drafts(world: World[Any], count: int, *, right_share: float, tags: Tags = None, seed: int) -> list[Drawn]:
    """Return images of training prompts, each right with a chance of `right_share`; of the others half are one edit
    away from it, which a critic overlooks most.

    >>> from r3_rl.worlds.base import find_world
    >>> world = find_world()
    >>> drawn = mixed_drafts(world, 8, right_share=0.25, seed=0)
    >>> needed = [world.edits_needed(d.scene, d.prompt) for d in drawn]
    >>> 0 in needed and 1 in needed
    True
    """
    rng = np.random.default_rng(seed)
    prompts = world.prompts(count, split="train", tags=tags, seed=rng)
    num_right = int(rng.binomial(count, right_share))  # a rounded share of two images would never be one of them
    num_near = (count - num_right + 1) // 2
    scenes = [world.scene(prompt, rng) for prompt in prompts[: num_right + num_near]]
    for number in range(num_right, num_right + num_near):
        scenes[number] = world.near_miss(scenes[number], prompts[number], rng)
    scenes += [world.wrong_scene(prompt, rng) for prompt in prompts[num_right + num_near :]]
    return _drawn(world, prompts, scenes, rng)


def right_drafts(world: World[Any], count: int, *, tags: Tags = None, seed: int) -> list[Drawn]:
    """Return right images of held-out prompts."""
    rng = np.random.default_rng(seed)
    prompts = world.prompts(count, split="held_out", tags=tags, seed=rng)
    return _drawn(world, prompts, [world.scene(prompt, rng) for prompt in prompts], rng)


def pairs(world: World[Any], count: int, *, tags: Tags = None, seed: int = PAIRS_SEED) -> list[Pair]:
    """Return pairs of images of held-out prompts that a critic has to tell apart.

    >>> from r3_rl.worlds.base import find_world
    >>> world = find_world()
    >>> (pair,) = pairs(world, 1)
    >>> [world.edits_needed(drawn.scene, drawn.prompt) for drawn in (pair.right, pair.near_miss)]
    [0, 1]
    """
    rng = np.random.default_rng(seed)
    prompts = world.prompts(count, split="held_out", tags=tags, seed=rng)
    rights = [world.scene(prompt, rng) for prompt in prompts]
    wrongs = [world.near_miss(scene, prompt, rng) for scene, prompt in zip(rights, prompts, strict=True)]
    drawn = _drawn(world, prompts * 2, rights + wrongs, rng)
    return [Pair(right=a, near_miss=b) for a, b in zip(drawn[:count], drawn[count:], strict=True)]


def _drawn(
    world: World[Any], prompts: Sequence[Prompt], scenes: Sequence[Any], rng: np.random.Generator
) -> list[Drawn]:
    images = world.roughen(world.draw(scenes), rng)
    return [Drawn(prompt=p, image=i, scene=s) for p, i, s in zip(prompts, images, scenes, strict=True)]
