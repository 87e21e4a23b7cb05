"""What a study says of its runs, against figures worked out by hand from values item by item."""

from __future__ import annotations

import json

import pytest

from r3_rl.observe.statistics import mean_of, over_seeds, paired_difference, share, unpaired_difference
from r3_rl.study.arms import ARMS
from r3_rl.study.figures import ArmRuns, Run, finished
from r3_rl.study.plan import Job
from r3_rl.study.rows import Row

ITEMS = ["a", "b", "c", "d"]
BEFORE = [0.0, 0.0, 1.0, 1.0]


def _run(folder, seed, after, *, own=(1.0, 0.0), items=ITEMS, steps=()):
    """A run folder with a figure on fixed prompts, and one on the policy's own drafts."""
    folder.mkdir(parents=True)
    phases = {
        "before": {"draft_greedy": share(BEFORE).as_dict(), "repair_round_1_greedy": share([1.0, 0.0]).as_dict()},
        "after": {"draft_greedy": share(after).as_dict(), "repair_round_1_greedy": share(own).as_dict()},
    }
    changed = {
        "draft_greedy": paired_difference(BEFORE, after).as_dict(),
        "repair_round_1_greedy": unpaired_difference([1.0, 0.0], own).as_dict(),
    }
    (folder / "evaluation.json").write_text(json.dumps({"phases": phases, "differences": changed}))
    values = {"before": {"draft_greedy": BEFORE}, "after": {"draft_greedy": after}}
    (folder / "values.json").write_text(json.dumps({"items": {"prompts": items}, "phases": values}))
    (folder / "summary.json").write_text(json.dumps({"wall_s": 12.5, "num_prompts": len(items)}))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in steps))
    return Run(folder=folder, seed=seed)


@pytest.fixture
def arms(tmp_path):
    first = {
        0: _run(tmp_path / "r3-0", 0, [1.0, 1.0, 1.0, 1.0], steps=[{"step": 1, "image/count": 8, "grad/cosine": 0.5}]),
        1: _run(tmp_path / "r3-1", 1, [1.0, 0.0, 1.0, 1.0], steps=[{"step": 1, "image/count": 4, "grad/cosine": 0.1}]),
    }
    other = {
        0: _run(tmp_path / "d-0", 0, [1.0, 0.0, 1.0, 1.0]),
        1: _run(tmp_path / "d-1", 1, [0.0, 0.0, 1.0, 1.0], own=(1.0, 1.0, 0.0)),
        2: _run(tmp_path / "d-2", 2, [0.0, 0.0, 0.0, 0.0]),
    }
    return ArmRuns(arm=ARMS["r3"], runs=first), ArmRuns(arm=ARMS["draft_only"], runs=other)


def test_a_change_is_the_mean_over_the_seeds_with_both_intervals(arms):
    found = arms[0].change("draft_greedy")
    assert found.per_seed == (0.5, 0.25)
    assert found.mean == 0.375
    assert found.over_seeds == over_seeds([0.5, 0.25])
    # item by item over both seeds: a and b rise by 1 and 1/2, c and d stay
    assert found.over_items == mean_of([1.0, 0.5, 0.0, 0.0])
    assert not found.clear


def test_arms_are_compared_on_the_seeds_and_items_that_both_have(arms):
    found = arms[0].minus(arms[1], "draft_greedy")
    assert found.per_seed == (0.25, 0.25)
    assert found.mean == found.over_items.mean == 0.25
    assert found.over_items.count == len(ITEMS)


def test_other_items_are_not_paired_and_own_drafts_have_no_interval_over_items(arms, tmp_path):
    others = ArmRuns(arm=ARMS["coin"], runs={0: _run(tmp_path / "c-0", 0, [0.0] * 4, items=["a", "b", "c", "x"])})
    found = arms[0].minus(others, "draft_greedy")
    assert found.mean == 1.0
    assert found.over_items is None
    own = arms[1].change("repair_round_1_greedy")
    assert own.over_items is None
    assert own.per_seed == (0.0, pytest.approx(1 / 6), 0.0)


def test_a_figure_that_a_run_lacks_is_missing_and_never_zero(arms):
    assert arms[0].change("listing_greedy") is None
    assert Row(name="listing_greedy", label="", group="").words(None, signed=True) == "–"


def test_numbers_of_the_steps_are_summed_and_averaged_over_the_seeds(arms):
    assert arms[0].total("image/count") == 6.0
    curve = arms[0].curve("grad/cosine")
    assert (curve.steps.tolist(), curve.values.tolist()) == ([1], [pytest.approx(0.3)])
    assert arms[1].total("image/count") is None


def test_only_the_newest_whole_run_of_a_job_counts(tmp_path):
    job = Job(arm=ARMS["r3"], seed=0, study=tmp_path)
    assert job.done is None
    assert job.interrupted is None
    (job.runs / "r3" / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    (job.runs / "r3_other").mkdir()
    assert job.done is None
    assert job.interrupted == job.runs / "r3"
    _run(job.runs / "r3-2", 0, BEFORE)
    assert job.done == job.runs / "r3-2"
    (job.runs / "r3-2" / "summary.json").rename(
        job.runs / "r3-2" / "elsewhere"
    )  # killed while it wrote what it measured
    assert job.done is None
    (job.runs / "r3-2" / "elsewhere").rename(job.runs / "r3-2" / "summary.json")
    found = finished([job, Job(arm=ARMS["coin"], seed=0, study=tmp_path)])
    assert [arm.arm.name for arm in found] == ["r3"]
