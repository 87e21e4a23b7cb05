"""The mosaic board behind the doors of a world."""

from __future__ import annotations

from pathlib import Path

from r3_rl.worlds.base import World
from r3_rl.worlds.shapes.mosaic.board import MOSAIC
from r3_rl.worlds.shapes.scene import Scene
from r3_rl.worlds.shapes.world import ShapesWorld

BASE_SIZES = {
    "num_prompts": 300,
    "num_fixed": 300,
    "num_right": 150,
    "num_questions": 300,
    "num_pairs": 150,
    "num_plans": 300,
    "num_edits": 300,
}
"""Fewer than on the small board: images and texts are longer here."""

WORLD: World[Scene] = ShapesWorld(
    board=MOSAIC,
    demo=None,  # six minutes of its recipe show nothing (lab book, entry 78)
    place=Path(__file__).resolve().parent,
    bases={"shared_experts": "mosaic_pretrain_shared", "two_experts": "mosaic_pretrain"},
    base_sizes=BASE_SIZES,
    second_inspector=True,
    # nine objects of five words
    rollout={
        "plan": {"max_new_tokens": 64},
        "critique": {"max_new_tokens": 80},
        "draft": {"size": (MOSAIC.image_size, MOSAIC.image_size)},
    },
)
