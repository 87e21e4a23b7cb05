"""Branching at every node, on real rollouts: children are counted, and what each earned is worked out from the tree."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from r3_rl.modalities import ImageSegment
from r3_rl.stages.protocol import Protocol
from r3_rl.types import Critique
from tests.policy.tiny import PAPER_GUIDANCE, loop
from tests.training.test_trainer import make, run


class AlwaysEdits(Protocol):
    """Whatever a random policy says is an edit."""

    def read_critique(self, segment):
        return Critique(segment=segment, well_formed=True, stop=False, instruction=segment.text or "a circle")


BRANCH = {"plan": 2, "draft": 2, "critique": 3, "refinement": 2}


def rolled(folder, phase, **options):
    """What was collected in the first step of a kind."""
    trainer = make(folder, num_generations=None, branch=BRANCH, format_weight=0.0, **options)
    seen = []
    trainer.on_collected = lambda step, collected: seen.append(collected)
    run(trainer)
    return next(collected for collected in seen if collected.phase == phase)


def children(ends):
    """Nodes below each node on the way to the ends."""
    every = dict.fromkeys(node for end in ends for node in end.way)
    return Counter(node.parent for node in every if node.parent is not None)


def advantages(collected):
    """By what was sampled; 0 where a segment was left out."""
    return {credit.segment: credit.advantage for credit in collected.credits}


def mean(values):
    return sum(values) / len(values)


def test_a_plan_earns_the_mean_of_its_drafts_and_drafts_of_a_plan_are_compared(tmp_path):
    collected = rolled(tmp_path, "reason", schedule="draft_only", max_steps=1)
    drafts, earned = collected.leaves, advantages(collected)
    counted = children(drafts)
    assert [counted[root] for root in dict.fromkeys(d.root for d in drafts)] == [2, 2]
    plans = list(dict.fromkeys(d.above for d in drafts))
    assert len(plans) == 4 and all(counted[plan] == 2 for plan in plans)
    worth = {plan: mean([d.score for d in drafts if d.above is plan]) * plan.well_formed for plan in plans}
    for plan in plans:
        expected = worth[plan] - mean([worth[p] for p in plans if p.root is plan.root])
        assert earned.get(plan.sample, 0.0) == pytest.approx(expected, abs=1e-6)
        below = [d for d in drafts if d.above is plan]
        assert sum(earned.get(d.sample, 0.0) for d in below) == pytest.approx(0, abs=1e-7)
        for draft in below:
            expected = draft.score - mean([d.score for d in below])
            assert earned.get(draft.sample, 0.0) == pytest.approx(expected, abs=1e-6)


def test_replay_agrees_with_rollout_where_later_rounds_read_the_earlier_ones(tmp_path):
    """Images, critiques and the image at hand: guided drawing drops all of them together."""
    always = replace(
        loop(guidance=PAPER_GUIDANCE), history=True, protocol=AlwaysEdits(reflect_template="check {prompt}")
    )
    trainer = make(
        tmp_path, schedule="episode", rounds=2, max_steps=1, loop_settings=always, num_generations=None,
        branch={"plan": 2, "critique": 3, "refinement": 2}, learning_rate=1e-6,
    )  # fmt: skip
    seen = []
    trainer.on_collected = lambda step, collected: seen.extend(collected.credits)
    (row,) = run(trainer)
    longest = {
        stage: max(len(c.segment.context) for c in seen if c.stage == stage) for stage in ("critique", "refinement")
    }
    assert longest == {"critique": 4, "refinement": 4}
    assert row["ratio/text_deviation"] < 1e-4 and row["ratio/image_deviation"] < 1e-4


def test_every_image_of_whole_trajectories_branches(tmp_path):
    collected = rolled(tmp_path, "full", schedule="full", rounds=2, max_steps=1)
    counted = children(collected.leaves)
    depths = {}
    for node, count in counted.items():
        wanted = {"plan": 2, "draft": 3, "critique": 2, "refinement": 3, "given": 2}[node.stage]
        assert count == wanted, node.stage
        depths.setdefault(node.stage, set()).add(node.id.depth)
    assert depths["draft"] == {2} and depths["critique"] == {3, 5} and depths["refinement"] == {4}
    rows = [end.id.row for end in collected.leaves]
    assert rows == sorted(rows) and len(rows) <= 2 * 2 * 2 * 6**2


def test_an_episode_branches_once(tmp_path):
    collected = rolled(tmp_path, "episode", schedule="episode", rounds=2, max_steps=1)
    for node, count in children(collected.leaves).items():
        wanted = {0: 3, 1: 2}.get(node.id.depth, 1)
        assert count == wanted, (node.stage, node.id)
    earned = advantages(collected)
    for end in collected.leaves:
        if isinstance(end.sample, ImageSegment) and end.id.depth == 4:
            assert earned.get(end.sample, 0) == earned.get(end.above.sample, 0), "one advantage for all after branching"
