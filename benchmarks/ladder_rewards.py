"""Rewards that any working trainer must learn, from one word of a plan to a whole critique.

Each looks at one thing only, so that a rung that does not rise says which part of the trainer is at fault. All are
scorers as a user would write them; `benchmarks/learns.py` trains on them by `./benchmarks/ladder_rewards.py:NAME`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from r3_rl.scoring.base import scorer_info
from r3_rl.worlds.shapes.language import parse_plan
from r3_rl.worlds.shapes.scene import Obj


def _plans(completions: list[str]) -> list[list[Obj]]:
    return [parse_plan(text) or [] for text in completions]


@scorer_info(range=(0.0, 1.0), needs=("completions",), deterministic=True)
def three_objects(completions: list[str], **columns: Any) -> list[float]:
    """1 for a plan of exactly three objects, less by a third for each one too many or too few."""
    return [max(0.0, 1 - abs(len(plan) - 3) / 3) for plan in _plans(completions)]


@scorer_info(range=(0.0, 1.0), needs=("completions",), deterministic=True)
def all_red(completions: list[str], **columns: Any) -> list[float]:
    """The share of a plan's objects that are red; 0 for none."""
    return [float(np.mean([o.color == "red" for o in plan])) if plan else 0.0 for plan in _plans(completions)]


@scorer_info(range=(0.0, 1.0), needs=("completions",), deterministic=True)
def starts_top_left(completions: list[str], **columns: Any) -> list[float]:
    """1 if the first object of a plan is in the top left cell."""
    return [float(bool(plan) and plan[0].cell == (0, 0)) for plan in _plans(completions)]


@scorer_info(range=(0.0, 1.0), needs=("images",), deterministic=True)
def bright(images: list[np.ndarray], **columns: Any) -> list[float]:
    """The mean of all pixels and channels, 0 for black and 1 for white."""
    return [float(image.mean()) / 255 for image in images]


@scorer_info(range=(0.0, 1.0), needs=("images",), deterministic=True)
def blue(images: list[np.ndarray], **columns: Any) -> list[float]:
    """The share of the blue channel in an image's light."""
    return [float(image[..., 2].sum()) / max(float(image.sum()), 1.0) for image in images]


@scorer_info(range=(0.0, 1.0), needs=("images",), deterministic=True)
def left_half_dark(images: list[np.ndarray], **columns: Any) -> list[float]:
    """The share of an image's light in its right half."""
    return [float(image[:, image.shape[1] // 2 :].sum()) / max(float(image.sum()), 1.0) for image in images]


@scorer_info(range=(0.0, 1.0), needs=("images",), deterministic=True)
def content(images: list[np.ndarray], **columns: Any) -> list[float]:
    """1 for every image: a critique then earns the paper's gain by stopping, and by nothing else."""
    return [1.0] * len(images)


@scorer_info(range=(0.0, 1.0), needs=("images",), deterministic=True)
def restless(images: list[np.ndarray], critiques: list[str] | None = None, **columns: Any) -> list[float]:
    """0 for a draft and 1 for any refinement: a critique earns a gain by asking for an edit, whichever it is."""
    return [0.0 if critiques is None else 1.0] * len(images)


@scorer_info(range=(0.0, 1.0), needs=("images",), deterministic=True)
def names_red_first(images: list[np.ndarray], critiques: list[str] | None = None, **columns: Any) -> list[float]:
    """0 for a draft, and for a refinement 1 if its critique's first listed object is called red."""
    if critiques is None:
        return [0.0] * len(images)
    return [float(text.replace("<think>", "").split()[:1] == ["red"]) for text in critiques]
