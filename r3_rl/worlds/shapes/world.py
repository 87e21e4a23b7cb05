"""The shapes world behind the doors of `worlds.base.World`."""

from __future__ import annotations

from pathlib import Path

from r3_rl.types import Prompt
from r3_rl.worlds.base import Seed, Tags, World
from r3_rl.worlds.shapes import shipped
from r3_rl.worlds.shapes.drawing import IMAGE_SIZE
from r3_rl.worlds.shapes.prompts import TAGS, sample_prompts


class ShapesWorld:
    """Coloured shapes on a grid of nine cells; see README.md."""

    name = "shapes"
    image_size = IMAGE_SIZE
    tags = TAGS

    def prompts(self, count: int, *, split: str, tags: Tags = None, seed: Seed) -> list[Prompt]:
        """Prompts in GenEval's metadata schema."""
        return sample_prompts(count, split=split, tags=tags, seed=seed)

    def weights_folder(self) -> Path:
        """The embedded model."""
        return shipped.weights_folder()

    def adapter_folder(self) -> Path:
        """An adapter of the embedded model, trained with R3."""
        return shipped.adapter_folder()


WORLD: World = ShapesWorld()
