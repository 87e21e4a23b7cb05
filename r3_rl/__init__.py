"""Reinforcement learning for models that draw, look at what they drew, and draw again.

The public names live in their rooms (`r3_rl.recipe_io.load_recipe`, `r3_rl.types.Trajectory`, ...). The most used
ones are reachable from here too and are loaded on first use, so that importing the package itself loads no torch.

>>> import r3_rl
>>> r3_rl.Prompt(text="a red circle").text
'a red circle'
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from r3_rl.torchvision_guard import watch

__version__ = "0.1.0"

_HOMES = {
    "Prompt": "r3_rl.types",
    "Trajectory": "r3_rl.types",
    "R3Config": "r3_rl.training.config",
    "R3Trainer": "r3_rl.training.trainer",
    "Recipe": "r3_rl.recipe",
    "load_recipe": "r3_rl.recipe_io",
    "R3Error": "r3_rl.errors",
    "Refiner": "r3_rl.evaluate.refiner",
}

__all__ = ["__version__", *_HOMES]

watch()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'r3_rl' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
