"""The examples in the READMEs of the rooms that load a policy are run, on weights that were never trained."""

from __future__ import annotations

import pytest

from r3_rl.worlds.shapes import shipped
from tests.docs.documents import REPOSITORY, snippets
from tests.docs.world import world_folder


@pytest.mark.parametrize("room", ["policy", "rollout", "training", "balance", "evaluate", "worlds"])
def test_examples_of_the_rooms_run(room, workplace, tmp_path_factory, monkeypatch):
    world = world_folder(tmp_path_factory.mktemp("weights"))
    monkeypatch.setattr(shipped, "weights_folder", lambda *_, **__: world)
    blocks = [s for s in snippets(REPOSITORY / "r3_rl" / room / "README.md") if s.language == "python"]
    assert blocks
    for block in blocks:
        exec(compile(block.text, room, "exec"), {})
