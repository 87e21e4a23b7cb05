"""Fixed pairs of images for the same prompt, one right and one a single edit away: a critic has to tell them apart."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from r3_rl.types import Prompt
from r3_rl.worlds.shapes.data import Tags
from r3_rl.worlds.shapes.drawing import render, roughen_pixels
from r3_rl.worlds.shapes.judging import edits_needed
from r3_rl.worlds.shapes.prompts import sample_prompts, sample_scene
from r3_rl.worlds.shapes.scene import Scene, apply_edit, random_edit


class Pair(NamedTuple):
    """A right image and a near miss of one prompt, made without a model."""

    prompt: Prompt
    right: np.ndarray
    """float32 [3, 36, 36] in [0, 1], as `near_miss`; with the pixel noise that a model's images have."""
    right_scene: Scene
    near_miss: np.ndarray
    near_miss_scene: Scene
    """One edit away from `right_scene`, and one edit away from what the prompt asks for."""


def near_miss(scene: Scene, prompt: Prompt, rng: np.random.Generator) -> Scene:
    """Change a scene that satisfies the prompt by one random edit so that one edit is needed to satisfy it again.

    >>> from r3_rl.worlds.shapes.prompts import sample_prompts, sample_scene
    >>> rng = np.random.default_rng(0)
    >>> prompt = sample_prompts(1, seed=0)[0]
    >>> edits_needed(near_miss(sample_scene(prompt, rng), prompt, rng), prompt)
    1
    """
    while True:
        after = apply_edit(scene, random_edit(scene, rng), rng)
        if after is not None and edits_needed(after, prompt) == 1:
            return after


def fixed_pairs(n: int, *, seed: int = 30_000, tags: Tags = None) -> list[Pair]:
    """Return the same `n` pairs for the same arguments, for held-out prompts.

    >>> one, other = fixed_pairs(2)
    >>> edits_needed(one.right_scene, one.prompt), edits_needed(one.near_miss_scene, one.prompt)
    (0, 1)
    """
    rng = np.random.default_rng(seed)
    prompts = sample_prompts(n, split="held_out", tags=tags, seed=rng)
    rights = [sample_scene(prompt, rng) for prompt in prompts]
    wrongs = [near_miss(scene, prompt, rng) for scene, prompt in zip(rights, prompts, strict=True)]
    images = roughen_pixels(render(rights + wrongs), rng)
    return [Pair(*row) for row in zip(prompts, images[:n], rights, images[n:], wrongs, strict=True)]
