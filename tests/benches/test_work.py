"""Which batches an evaluation has."""

from __future__ import annotations

from r3_rl.benches.base import GREEDY, SAMPLED, Request
from r3_rl.benches.work import all_batches
from r3_rl.benches.world import world_benches
from r3_rl.worlds.base import find_world


def test_greedy_texts_about_given_images_have_one_seed():
    world = find_world()
    request = Request(name=world.name, path=None, tags=None, world=world, rounds=[0], limit=50)
    benches = {bench.name.partition(".")[2]: bench for bench in world_benches(request, world)}

    def seeds(name: str, decoding: str) -> set[int]:
        found = all_batches([benches[name]], [None], 3)
        return {batch.seed for batch in found if batch.decoding == decoding}

    assert seeds("drawing", GREEDY) == seeds("painter", GREEDY) == seeds("own", GREEDY) == {0, 1, 2}
    assert seeds("questions", GREEDY) == seeds("pairs", GREEDY) == {0}
    assert seeds("questions", SAMPLED) == seeds("pairs", SAMPLED) == {0, 1, 2}


def test_batches_are_the_items_in_order():
    world = find_world()
    request = Request(name=world.name, path=None, tags=world.tags[:2], world=world, rounds=[0], limit=150)
    (drawing, *_) = world_benches(request, world)
    found = all_batches([drawing], [None], 1)
    assert [(b.items.start, b.items.stop) for b in found if b.decoding == GREEDY] == [(0, 128), (128, 150)]
    assert len({b.bench.name + b.decoding + str(b.items.start) for b in found}) == len(found)
