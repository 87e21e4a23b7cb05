"""The mosaic board behind the doors of a world."""

from __future__ import annotations

from pathlib import Path

from r3_rl.worlds.base import Demo, World
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
    # pairs are read quickly and say whether the critic learned; drafts are drawn slowly
    demo=Demo(
        recipe="mosaic_r3_split",
        max_steps=150,
        sizes={
            "num_prompts": 160,
            "num_fixed": 100,
            "num_right": 50,
            "num_questions": 120,
            "num_swap": 60,
            "num_pairs": 200,
            "num_plans": 80,
            "num_edits": 60,
            "num_critics": 40,
            "num_own_questions": 40,
        },
    ),
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
