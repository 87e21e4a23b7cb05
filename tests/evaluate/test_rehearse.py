"""The rehearsal: what it measures is what a run takes, and what it concludes follows from it."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import pytest
import torch

from r3_rl.assemble import load_policy
from r3_rl.errors import RunError
from r3_rl.evaluate import rehearsal
from r3_rl.evaluate import rehearse as room
from r3_rl.evaluate.rehearsal import Rehearsal, Spent
from r3_rl.observe.memory import weighed
from r3_rl.recipe_io import load_recipe
from tests.docs.world import world_folder

PLAIN = [
    "rollout.num_prompts=2",
    "rollout.branch={plan: 3, critique: 3}",
    "rollout.draft.num_steps=2",
    "rollout.refine.num_steps=2",
    "rollout.draft.window_size=null",
    "rollout.refine.window_size=null",
    "rollout.plan.max_new_tokens=4",
    "rollout.critique.max_new_tokens=4",
    "training.max_steps=10",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return world_folder(tmp_path_factory.mktemp("base"))


def rehearsed(base, *overrides) -> Rehearsal:
    return room.rehearse(load_recipe("shapes_r3", [f"model.path={base}", *PLAIN, *overrides]))


def plan(**changed) -> Rehearsal:
    fields = dict(
        device="cpu", schedule="tree", rounds=1, turn=(1, 1), num_iterations=1, num_steps=100, num_prompts=2,
        num_peers=8, rows=16, resident={"weights": 1000}, caches=10, update_bytes=500, free=3000,
        stages={
            "draft": Spent(seconds=2.0, peaks=((2, 100), (4, 200))),
            "critique": Spent(seconds=4.0, peaks=((2, 10), (4, 20))),
            "optimiser": Spent(seconds=1.0),
        },
    )  # fmt: skip
    return Rehearsal(**{**fields, **changed})


def test_a_plan_follows_from_its_measurements():
    whole = plan()
    assert whole.peak == 1000 + 800 and whole.fits
    assert whole.largest_group == 20, "2000 bytes are left, a draft takes 50 of them, two prompts lie side by side"
    assert (whole.step_s("reason"), whole.step_s("refine"), whole.run_s) == (3.0, 5.0, 400.0)
    assert plan(turn=(3, 1)).run_s == 100 * (3 * 3.0 + 5.0) / 4, "a refine step in four"
    assert plan(turn=(1, 2)).run_s == 100 * (3.0 + 2 * 5.0) / 3, "two in three"
    assert plan(schedule="draft_only", turn=(3, 1)).run_s == 300.0
    assert plan(num_iterations=4).step_s("reason") == 2.0 / 4 + 1.0, "four updates on the same rollouts"
    assert plan(rows=8).step_s("reason") == 5.0, "seconds of half the rollouts count twice, the optimiser's once"
    assert plan(schedule="full", rounds=2).step_s("full") == 2.0 + 2 * 4.0 + 1.0
    tight = plan(free=1700)
    assert not tight.fits and "DOES NOT FIT" in str(tight) and tight.largest_group == 7
    assert plan(free=1400).largest_group == 0 and "lower training.token_budget" in str(plan(free=1400))


def test_a_tree_run_is_rehearsed_and_leaves_nothing(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = rehearsed(base)
    assert list(tmp_path.iterdir()) == []
    assert found.rows == found.whole == 6 and found.fits and found.largest_group > 6
    assert set(found.stages) == {
        "plan", "draft", "score drafts", "update drafts", "critique", "refinement", "score refinements",
        "update refinements", "optimiser",
    }  # fmt: skip
    for stage in ("plan", "draft", "critique", "refinement"):
        (few, low), (many, high) = found.stages[stage].peaks
        assert (few, many) == (2, 4) and 0 < low < high
    adapter = found.resident["adapter"]
    assert found.resident["gradients"] == adapter and found.resident["optimiser (AdamW)"] == 2 * adapter
    assert found.update_bytes > 0 and found.run_s > 0
    assert "largest group that fits, 2 prompts side by side" in str(found)


def test_baselines_rehearse_their_own_stages_and_full_weights_their_copy(base):
    found = rehearsed(base, "algorithm.schedule=draft_only", "lora.enabled=false", "algorithm.tree.node_choice=uniform")
    assert "critique" not in found.stages and "update drafts" in found.stages
    assert found.resident["reference policy (a copy)"] == found.resident["gradients"] > 0


@pytest.fixture
def ticks(monkeypatch):
    """A clock that goes on by one when it is looked at: everything timed takes one second."""
    monkeypatch.setattr(rehearsal, "time", SimpleNamespace(perf_counter=count().__next__))


def test_images_drawn_in_parts_need_less_memory_and_the_time_of_all(base, ticks):
    eight = ["rollout.num_prompts=4", "rollout.branch={plan: 2, critique: 2}"]
    whole, parts = rehearsed(base, *eight), rehearsed(base, *eight, "rollout.num_parts=4")
    for stage in ("draft", "refinement"):
        assert parts.stages[stage].share == 0.25 and whole.stages[stage].share == 1.0
        assert parts.stages[stage].bytes_at(8) == parts.stages[stage].peaks[0][1], "two rollouts side by side"
        assert whole.stages[stage].bytes_at(8) > 1.5 * parts.stages[stage].bytes_at(8)
        assert (parts.stages[stage].seconds, whole.stages[stage].seconds) == (4.0, 1.0)
    assert parts.stages["critique"].share == 1.0, "texts are written in one batch"
    assert parts.caches < whole.caches
    assert "scoring is counted in full" in str(parts) and "scoring is counted" not in str(whole)


def test_recomputing_layers_takes_less_memory(base):
    kept, again = (
        rehearsed(base, f"training.gradient_checkpointing={flag}").update_bytes for flag in ("false", "true")
    )
    assert again < kept


def test_memory_that_runs_out_names_the_stage(base, monkeypatch):
    def full(self, *arguments):
        raise torch.OutOfMemoryError("full")

    policy = type(load_policy(load_recipe("shapes_r3", [f"model.path={base}"]).model).policy)
    monkeypatch.setattr(policy, "draw", full)
    with pytest.raises(RunError, match=r"out of memory in stage 'self-check'.*lower rollout\.num_prompts"):
        rehearsed(base)


def test_memory_that_runs_out_in_a_part_names_its_rollouts(base, monkeypatch):
    policy = type(load_policy(load_recipe("shapes_r3", [f"model.path={base}"]).model).policy)
    draw = policy.draw

    def full(self, contexts, *arguments):
        if len(contexts) == 3:
            raise torch.OutOfMemoryError("full")
        return draw(self, contexts, *arguments)

    monkeypatch.setattr(policy, "draw", full)
    with pytest.raises(RunError, match=r"stage 'draft' with 3 rollouts side by side.*rollout\.num_parts draws fewer"):
        rehearsed(base, "rollout.num_parts=2")


def test_living_tensors_are_weighed_with_their_graph():
    weight = torch.randn(100, 100, requires_grad=True)
    with weighed() as taken:
        product = weight @ weight
        view = product[:10]
        total = product.relu().sum()
        del product
        total.backward()
    assert 80_000 <= taken.peak_bytes <= 200_000 and view.shape == (10, 100)
    with weighed() as nothing:
        weight.detach().mul_(2)
    assert nothing.peak_bytes == 0


def test_one_of_several_processes_is_rehearsed_with_its_shards(base):
    full = ["lora.enabled=false", "model.dtype=bfloat16", "algorithm.beta=0.01"]
    recipe = load_recipe("shapes_r3", [f"model.path={base}", *PLAIN, *full])
    whole, part = room.rehearse(recipe), room.rehearse(recipe, processes=2)
    assert (whole.num_prompts, part.num_prompts) == (2, 1)
    shards = [name for name in whole.resident if "a shard)" in name]
    assert len(shards) == 4
    for name in shards:
        assert part.resident[name] == pytest.approx(whole.resident[name] / 2, rel=1e-3)
    assert part.resident["optimiser (AdamW, a shard)"] == 4 * part.resident["reference policy (a shard)"]
    assert part.sampling == whole.sampling == 2 * part.resident["reference policy (a shard)"]
    assert 0 < part.updating == whole.updating and "optimiser" not in part.stages
    assert "each pass of an update sends" in str(part)
    copies = load_recipe("shapes_r3", [f"model.path={base}", *PLAIN, *full, "training.parallel.replicate=2"])
    copied = room.rehearse(copies, processes=2, nodes=2)
    assert copied.resident == whole.resident and "between nodes only gradients travel" in str(copied)
