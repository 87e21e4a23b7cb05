"""The mosaic board: 25 cells, two sizes, up to nine objects."""

from __future__ import annotations

from r3_rl.worlds.shapes.board import Board, Size
from r3_rl.worlds.shapes.mosaic.kinds import MOSAIC_KINDS, MOST_OBJECTS, kind_of_mosaic

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
