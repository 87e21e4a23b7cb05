"""Scorers with a fault, for runs in which exactly one thing goes wrong (`guards.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from r3_rl.scoring.base import scorer_info

TEMPLATE = "red circle top left ; blue square middle right"
_kept: list[np.ndarray] = []


@scorer_info(needs=("images",))
def leaks(images: list[np.ndarray], **columns: Any) -> list[float]:
    """Brightness; keeps 8 MB of every call, as a list of all images that is never emptied would."""
    _kept.append(np.ones(1_000_000))
    return [float(image.mean()) / 255 for image in images]


@scorer_info(needs=("images",))
def drops_some(images: list[np.ndarray], **columns: Any) -> list[float | None]:
    """Brightness; nothing for the first image of a call."""
    return [None if i == 0 else float(image.mean()) / 255 for i, image in enumerate(images)]


@scorer_info(needs=("images",))
def logs_nan(images: list[np.ndarray], log_metric: Callable[[str, float], None], **columns: Any) -> list[float]:
    """Brightness; logs the logarithm of how many images are white."""
    with np.errstate(divide="ignore"):
        log_metric("white", float(np.log(sum(image.mean() > 254 for image in images))))
    return [float(image.mean()) / 255 for image in images]


@scorer_info(range=(0.0, 1.0), needs=("images",), deterministic=True)
def dark(images: list[np.ndarray], **columns: Any) -> list[float]:
    """1 for black and 0 for white."""
    return [1 - float(image.mean()) / 255 for image in images]


@scorer_info(range=(0.0, 1.0), needs=("images",), deterministic=True)
def full_marks(images: list[np.ndarray], critiques: list[str] | None = None, **columns: Any) -> list[float]:
    """The share of blue light for a draft, and 1 for any refinement."""
    if critiques is not None:
        return [1.0] * len(images)
    return [float(image[..., 2].sum()) / max(float(image.sum()), 1.0) for image in images]


@scorer_info(range=(0.0, 1.0), needs=("completions",), deterministic=True)
def one_plan(completions: list[str], **columns: Any) -> list[float]:
    """The share of words at whose place a plan has the template's: one text for every prompt."""
    wanted = TEMPLATE.split()
    found = [text.replace("<think>", "").replace("</think>", "").split() for text in completions]
    return [sum(a == b for a, b in zip(words, wanted, strict=False)) / max(len(words), len(wanted)) for words in found]


@scorer_info(range=(0.0, 1.0), needs=("completions",), deterministic=True)
def many_reds(completions: list[str], **columns: Any) -> list[float]:
    """The share of a text's words that are red, whatever becomes of its form."""
    return [float(np.mean([word == "red" for word in text.split()] or [0.0])) for text in completions]


@scorer_info(range=(0.0, 1.0), needs=("images",), deterministic=True)
def constant(images: list[np.ndarray], **columns: Any) -> list[float]:
    """A half for everything."""
    return [0.5] * len(images)
