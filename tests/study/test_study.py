"""`r3 study` as a user runs it: real runs, stopped in between, gone on with, compared on one page."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
from safetensors.numpy import load_file

from r3_rl.errors import InputError, RecipeError
from r3_rl.observe.evaluation import Evaluation
from r3_rl.study.jobs import _next
from r3_rl.study.plan import Plan, write_plan
from r3_rl.study.run import study

APART = ("draft_only", "critique_only")
SMALL = (
    "training.max_steps=3", "training.save_steps=1", "training.eval_prompts=2", "training.eval_items=2",
    "training.num_threads=1", "rollout.num_prompts=2", "rollout.rounds=1", "lora.rank=4", "observe.gallery=0",
    "rollout.branch={plan: 2, draft: 2, critique: 4, refinement: 1}", "rollout.draft.num_steps=4",
    "rollout.refine.num_steps=4", "rollout.plan.enabled=false", "rollout.critique.max_new_tokens=24",
    "algorithm.answer_share=0",
)  # fmt: skip
"""Without plans and with short critiques: writing, word by word, is most of the time that a small run takes."""


def _call(folder, *more):
    command = [sys.executable, "-m", "r3_rl", "study", str(folder), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _run(folder, arm):
    """The run folder of an arm that ended; `ARM-2` where the first was stopped before its first checkpoint."""
    return next(job.done for job in Plan.read(folder).jobs() if job.arm.name == arm)


def _metrics(folder, arm):
    """Lines of a run without what a clock or a meter said."""
    lines = (_run(folder, arm) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if "time" not in k and "memory" not in k} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study of two arms, one made of both, and one that is taught; with what it printed."""
    folder = tmp_path_factory.mktemp("whole") / "study"
    begin = ("--recipe", "shapes_r3", "--arms", "averaged,taught_drawing", "--seeds", "1", "--jobs", "2", *SMALL)
    done = _call(folder, *begin)
    said, _ = done.communicate(timeout=600)
    assert done.returncode == 0, said
    return folder, said


@pytest.mark.slow
@pytest.mark.processes
def test_a_study_that_was_stopped_goes_on_to_the_same_figures(whole, tmp_path):
    stopped = tmp_path / "stopped"
    cut = _call(stopped, "--recipe", "shapes_r3", "--arms", ",".join(APART), "--seeds", "1", "--jobs", "2", *SMALL)
    runs = stopped / "runs" / "seed-0"
    deadline = time.monotonic() + 300
    while not any(runs.glob("*/checkpoints/checkpoint-1")) and time.monotonic() < deadline:
        time.sleep(0.05)
    cut.send_signal(signal.SIGTERM)
    said, _ = cut.communicate(timeout=300)
    assert cut.returncode == 128 + signal.SIGTERM, said
    resumed = _call(stopped)
    said, _ = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, said
    assert said.splitlines()[-1] == f"report {stopped / 'study.html'}"
    for arm in APART:
        assert _metrics(stopped, arm) == _metrics(whole[0], arm)
        found = [
            Evaluation.from_document(json.loads((_run(folder, arm) / "evaluation.json").read_text()))
            for folder in (whole[0], stopped)
        ]
        assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.processes
def test_a_study_merges_what_was_trained_apart_and_teaches(whole):
    """`averaged` waits for its parts, begins from their sum and trains nothing; a part that fails fails it too."""
    folder, said = whole
    assert "run 4/4" in said
    assert said.index("draft_only") < said.index("averaged")
    assert "0.5 x" in said and (folder / "runs" / "seed-0" / "averaged.adapter" / "README.md").is_file()
    assert not (_run(folder, "averaged") / "metrics.jsonl").exists(), "no step was taken"
    parts = [load_file(_run(folder, arm) / "adapter" / "adapter_model.safetensors") for arm in APART]
    merged = load_file(_run(folder, "averaged") / "adapter" / "adapter_model.safetensors")
    name = next(iter(parts[0])).replace(".lora_B.", ".lora_A.")
    assert merged[name].shape[0] == 2 * parts[0][name].shape[0]
    failed = []
    jobs = Plan.read(folder).jobs()
    averaged, draft_only = (next(j for j in jobs if j.arm.name == name) for name in ("averaged", "draft_only"))
    assert _next([averaged], {draft_only: None}, failed) is averaged, "its part is done"
    left = draft_only.done / "summary.json"
    left.rename(left.with_suffix(".away"))
    assert _next([averaged], {draft_only: None}, failed) is None and failed == [], "it waits for a run"
    assert _next([averaged], {}, failed) is None and failed == [averaged]
    left.with_suffix(".away").rename(left)


@pytest.mark.slow
@pytest.mark.processes
def test_a_study_compares_its_arms_on_one_page(whole):
    folder, _ = whole
    page, tables = (folder / "study.html").read_text(), (folder / "study.md").read_text()
    for words in (
        "Understanding against generation",
        "Each arm minus Generation only",
        "Edit budgets",
        "Cost of a run",
    ):
        assert words in page
    assert "Generation only" in tables
    assert len(list((folder / "base").iterdir())) == 1, "measured once, or by runs that began together"
    last = folder / "runs" / "seed-0" / "averaged.log"
    assert "measured before training by another run" in last.read_text()
    rows = [json.loads(line) for line in (folder / "figures.jsonl").read_text().splitlines()]
    assert {(row["arm"], row["seed"], row["phase"]) for row in rows} == {
        (arm, 0, phase) for arm in (*APART, "averaged", "taught_drawing") for phase in ("before", "after")
    }


def test_a_wrong_arm_or_setting_is_told_before_anything_runs(tmp_path, r3):
    begin = ("--recipe", "shapes_r3", "--arms", "r3,taught_drawing", "balance.aggregator=config")
    said = r3("study", str(tmp_path / "a"), *begin)
    assert said.code == 2
    assert "arm 'taught_drawing'" in said.err
    assert not (tmp_path / "a" / "study.json").exists()
    said = r3("study", str(tmp_path / "b"))
    assert (said.code, said.err.splitlines()[0]) == (
        2,
        f"{tmp_path / 'b'}: no study in this folder; give --recipe to begin one",
    )
    said = r3("study", str(tmp_path / "c"), "--recipe", "shapes_r3", "--arms", "main", "--against", "full")
    assert "no such arm in this study" in said.err
    for slip in (("--jobs", "0"), ("--seeds", "0")):
        assert r3("study", str(tmp_path / "d"), "--recipe", "shapes_r3", *slip).code == 2


def test_another_study_in_the_same_folder_is_refused(tmp_path):
    plan = Plan(folder=tmp_path, recipe="shapes_r3", arms=("r3",), num_seeds=1, overrides=("training.max_steps=2",))
    write_plan(plan)
    assert Plan.read(tmp_path) == plan
    write_plan(plan)
    common = {"folder": tmp_path, "arms": (), "num_seeds": None, "at_once": 1, "against": None}
    with pytest.raises(InputError, match=r"holds a study of shapes_r3 training\.max_steps=2"):
        study(recipe="shapes_cotrain", overrides=(), **common)
    with pytest.raises(InputError, match=r"holds a study of shapes_r3 training\.max_steps=2"):
        study(recipe=None, overrides=("training.max_steps=3",), **common)
    (tmp_path / "recipes" / "r3.yaml").write_text("extends: shapes_r3\ntraining: {max_steps: 3}\n")
    with pytest.raises(InputError, match=r"whose arm 'r3' is another: training\.max_steps: 3 -> 2"):
        write_plan(plan)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(InputError, match=r"study\.json is no study"):
        Plan.read(tmp_path)


def test_prompts_that_nothing_measures_are_refused(tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "a red circle"}\n')
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"extends: shapes_r3\ndata: {{kind: jsonl, path: {prompts}, tags: null}}\n"
        "rewards: [{scorer: random_reward}]\neval_rewards: []\n"
    )
    plan = Plan(folder=tmp_path / "s", recipe=str(recipe), arms=("r3",), num_seeds=1, overrides=())
    with pytest.raises((InputError, RecipeError), match="arm 'r3'"):
        write_plan(plan)
