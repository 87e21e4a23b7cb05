"""Rollouts cross a process border as bytes and are worth there what they were worth here."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import Future
from dataclasses import replace

import pytest
import torch

from r3_rl.errors import InputError
from r3_rl.nodes import given_image, trajectory
from r3_rl.nodes_io import from_bytes, to_bytes
from r3_rl.policy.base import Sampling
from r3_rl.rollout.engine import Engine
from r3_rl.stages.settings import DrawingPlan
from r3_rl.types import Verdict
from tests.policy.test_policy import FAITHFUL, GUIDED
from tests.policy.tiny import PROMPTS, loop, pictures, tiny_policy


def scored(batch):
    answer = Future()
    answer.set_result(
        [Verdict(total=0.25 * (i % 5), scores={"s": 0.5, "none": None}, words="é\u2028") for i in range(batch.count)]
    )
    return answer


def rolled(drawing):
    """Plans, drafts, critiques and refinements in ragged groups, with truncated texts."""
    as_given = DrawingPlan(drawing=drawing)
    settings = replace(loop(plan=Sampling(max_new_tokens=6, top_p=0.8)), draft=as_given, refine=as_given)
    engine = Engine(policy=tiny_policy(), settings=settings, submit=scored)
    drafts = engine.drafts(PROMPTS, seed=3, plans=2, drafts=2)
    ends = engine.round(drafts, seed=5)
    looked_at = engine.critiques([given_image(PROMPTS[0], pictures(1)[0])], seed=1, each=2)
    return [*ends, *looked_at]


def samples(nodes):
    """Every text and image on the way to the nodes that has a probability, once."""
    found = {}
    for node in nodes:
        while node is not None:
            if node.sample is not None and len(node.sample.log_probs):
                found.setdefault((node.id, node.stage), node.sample)
            node = node.parent
    return list(found.values())


@pytest.mark.parametrize("drawing", [FAITHFUL, GUIDED], ids=["plain", "guided"])
def test_nothing_is_lost(drawing):
    nodes = rolled(drawing)
    again = from_bytes(to_bytes(nodes))
    for a, b in zip(nodes, again, strict=True):
        while a is not None:
            assert (a.id, a.stage, a.num_rows, a.num_refinements, a.well_formed) == (
                b.id, b.stage, b.num_rows, b.num_refinements, b.well_formed,
            )  # fmt: skip
            assert a.prompt == b.prompt and a.verdict == b.verdict and (a.parent is None) == (b.parent is None)
            if a.critique is not None:
                assert (a.critique.stop, a.critique.instruction) == (b.critique.stop, b.critique.instruction)
            a, b = a.parent, b.parent
    for a, b in zip(samples(nodes), samples(again), strict=True):
        assert [p.key for p in a.context] == [p.key for p in b.context]
        assert torch.equal(a.log_probs, b.log_probs) and getattr(a, "drawing", None) == getattr(b, "drawing", None)
    assert [len(trajectory(n).rounds) for n in nodes] == [len(trajectory(n).rounds) for n in again]
    assert again[0].root is again[1].root, "what nodes share is one node again"


def test_what_several_nodes_share_is_written_once():
    (image,) = (given_image(PROMPTS[0], i) for i in pictures(1))
    peers = Engine(policy=tiny_policy(), settings=loop()).critiques([image], seed=1, each=8)
    assert len(to_bytes(peers)) < 1.5 * len(to_bytes(peers[:1])), "they look at one image"


@pytest.mark.processes
def test_another_process_replays_them_to_the_same_log_probs(tmp_path):
    nodes = rolled(GUIDED)
    (tmp_path / "rollouts").write_bytes(to_bytes(nodes))
    here = torch.cat([x.log_probs.detach().flatten() for x in tiny_policy().replay(samples(nodes))])
    script = (
        "import sys, torch\nfrom pathlib import Path\nfrom r3_rl.nodes_io import from_bytes\n"
        "from tests.test_nodes_io import samples, tiny_policy\n"
        "nodes = from_bytes(Path(sys.argv[1]).read_bytes())\n"
        "found = torch.cat([x.log_probs.detach().flatten() for x in tiny_policy().replay(samples(nodes))])\n"
        "torch.save(found, sys.argv[2])\n"
    )
    there = tmp_path / "there.pt"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "rollouts"), str(there)], check=True)
    assert torch.equal(torch.load(there, weights_only=True), here)


@pytest.mark.parametrize("data", [b"", b"nothing at all", b"\x00" * 64])
def test_other_bytes_are_refused(data):
    with pytest.raises(InputError, match="no rollouts; write them with to_bytes"):
        from_bytes(data)
