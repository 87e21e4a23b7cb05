"""What a world is: a source of prompts whose images can be inspected exactly, found by name.

Nothing here or in a world's own module loads torch when it is imported: checking a recipe asks the world too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from r3_rl import registered
from r3_rl.errors import InputError
from r3_rl.types import Prompt

Tags = Sequence[str] | Mapping[str, float] | None
"""Kinds of prompts, with weights if a mapping; None is every kind equally often."""
Seed = int | np.random.Generator
"""A number, or a generator that is drawn from."""


class World(Protocol):
    """A world, as the rest of the toolkit sees it."""

    @property
    def name(self) -> str:
        """As in `data.kind` of a recipe."""
        ...

    @property
    def image_size(self) -> int:
        """Height and width of its images in pixels."""
        ...

    @property
    def tags(self) -> tuple[str, ...]:
        """Kinds of prompts: the column `tag` of each."""
        ...

    def prompts(self, count: int, *, split: str, tags: Tags = None, seed: Seed) -> list[Prompt]:
        """Draw `count` prompts with replacement from a split, `train` or `held_out`. Their columns hold everything
        that a verdict needs."""
        ...

    def weights_folder(self) -> Path:
        """Return the folder of the model that ships with the world; raise CheckpointError if there is none."""
        ...

    def adapter_folder(self) -> Path:
        """Return the folder of the adapter that ships with the world; raise CheckpointError if there is none."""
        ...


def find_world(name: str | None = None) -> World:
    """Return a world by its name, by default the embedded one.

    Raises:
        InputError: an unknown name, or something that is not a world: the message names what it lacks.

    >>> find_world().name == registered.default(registered.WORLDS)
    True
    """
    name = name or registered.default(registered.WORLDS)
    world = registered.find(registered.WORLDS, name)
    doors = [door for door in vars(World) if not door.startswith("_")]
    if lacking := [door for door in doors if not hasattr(world, door)]:
        raise InputError(
            f"world '{name}' lacks {', '.join(lacking)}", hint="r3_rl/worlds/base.py says what a world has"
        )
    return world


def chosen_tags(world: World, tags: Sequence[str] | None, exclude: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the kinds of prompts that are kept, in the order they were asked for.

    >>> world = find_world()
    >>> chosen_tags(world, None, world.tags[1:]) == world.tags[:1]
    True
    """
    return tuple(tag for tag in (tags or world.tags) if tag not in exclude)
