"""The mosaic world: 25 cells, two sizes, up to nine objects."""

from __future__ import annotations

from pathlib import Path

from r3_rl.worlds.base import World
from r3_rl.worlds.shapes.board import Board, Size
from r3_rl.worlds.shapes.mosaic.kinds import MOSAIC_KINDS, MOST_OBJECTS, kind_of_mosaic
from r3_rl.worlds.shapes.scene import Scene
from r3_rl.worlds.shapes.world import ShapesWorld

MOSAIC = Board(
    name="mosaic",
    rows=("top", "upper", "middle", "lower", "bottom"),
    columns=("left", "midleft", "center", "midright", "right"),
    sizes=(Size(word="small", radius=(2.9, 3.2)), Size(word="large", radius=(4.3, 4.8))),
    jitter=1.1,
    template_radii=(2.75, 5.0, 10),
    num_objects=(1, MOST_OBJECTS),
    kinds=MOSAIC_KINDS,
    most_relations=2,
    kind_of=kind_of_mosaic,
    salt="mosaic ",
    answers_list_all=False,  # up to 45 words, where five answer the question
)

WORLD: World[Scene] = ShapesWorld(
    board=MOSAIC,
    demo=None,
    place=Path(__file__).resolve().parent,
    bases={"two_experts": "mosaic_pretrain", "shared_experts": "mosaic_pretrain_shared"},
)
