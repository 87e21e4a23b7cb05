"""A run from recipe to report: what it leaves, how it goes on after an interrupt, what it refuses."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from r3_rl.errors import InputError, RunError
from r3_rl.evaluate import run as runs
from r3_rl.evaluate.base import bench_of
from r3_rl.evaluate.build import synthetic_nodes
from r3_rl.evaluate.resume import CHANGES
from r3_rl.evaluate.run import train
from r3_rl.observe.compare import compare
from r3_rl.observe.lock import LOCK
from r3_rl.observe.metrics import unknown_names
from r3_rl.observe.recorder import read_lines
from r3_rl.policy.bagel.checkpoint import load_bagel
from r3_rl.recipe_io import dump_resolved, load_recipe
from r3_rl.scoring.batch import ScoreBatch
from r3_rl.scoring.panel import Panel, ScorerSpec
from r3_rl.types import Prompt
from r3_rl.worlds.base import find_world
from tests.docs.world import world_folder

PLAIN = [
    "rollout.num_prompts=2",
    "rollout.branch={plan: 2, critique: 2}",
    "rollout.draft.num_steps=2",
    "rollout.refine.num_steps=2",
    "rollout.draft.window_size=null",
    "rollout.refine.window_size=null",
    "rollout.plan.max_new_tokens=4",
    "rollout.critique.max_new_tokens=4",
    "rollout.rounds=1",
    "algorithm.schedule=draft_only",
    "algorithm.tree.node_choice=uniform",
    "training.max_steps=4",
    "training.save_steps=2",
    "training.eval_steps=2",
    "training.learning_rate=0.01",
    "observe.gallery=2",
    "observe.keep_trajectories=3",
]
MEASURED = ("draft", "final", "wrong_drafts_edited", "wrong_drafts_repaired", "right_drafts_kept", "questions")
BOTH = (*MEASURED, "ita_fixed", "listing", "plan_right")
NAMES = (*BOTH, *(f"{name}_greedy" for name in BOTH), "true_plan_drawn", "true_edit_drawn", "draft_pass_8",
         "entropy_plan", "entropy_critique")  # fmt: skip
SUMMARY = {f"{name}_{what}" for name in NAMES for what in ("before", "after", "difference")} | {
    "num_prompts", "seeds", "wall_s", "sets",
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return world_folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def recipe(base, tmp_path_factory):
    """A recipe with a scorer from a file beside it."""
    place = tmp_path_factory.mktemp("place")
    (place / "red.py").write_text(
        "def red(images, **columns):\n    return [float(image[..., 0].mean()) / 255 for image in images]\n"
    )
    (place / "mine.yaml").write_text("extends: shapes_r3\nrewards:\n  - scorer: ./red.py:red\n")
    (place / "prompts.jsonl").write_text("".join(f'{{"prompt": "a {c} circle"}}\n' for c in ("red", "blue", "green")))

    def made(*overrides):
        return load_recipe(
            "mine.yaml", [f"model.path={base}", f"training.output_dir={place / 'runs'}", *PLAIN, *overrides]
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        yield made


@dataclass(frozen=True)
class Said:
    """A run and what it printed."""

    folder: Path
    text: str


@pytest.fixture(scope="module")
def whole(recipe):
    """A run that nothing disturbs."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        folder = train(recipe(), bench=bench(recipe()), name="mine").folder
    return Said(folder, out.getvalue())


def bench(recipe):
    return bench_of(
        recipe,
        num_prompts=4,
        num_fixed=4,
        num_right=2,
        num_questions=2,
        num_pairs=2,
        num_plans=2,
        num_edits=2,
        num_own_questions=2,
        num_others=2,
    )


def test_a_run_leaves_everything_that_it_says(recipe, whole):
    folder, said = whole.folder, whole.text
    for line in ("2 prompts x 2 plans = 4 rollouts", f"run folder {folder}", "self-check: |ratio - 1|", "report "):
        assert line in said
    headline = " ".join(said[said.index("\ngreedy texts, ") :].split())
    assert headline.startswith("greedy texts, untrained -> trained, %: draft ")
    assert "sampled texts: draft " in headline and "entropy in nats a token: plans " in headline
    assert "report" not in headline, "the last lines"
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary) >= SUMMARY and summary["seeds"] == [0] and summary["num_prompts"] == 4
    measured = json.loads((folder / "evaluation.json").read_text())
    assert set(measured["phases"]) == {"before", "after"} and "draft" in measured["differences"]
    assert summary["draft_after"] == measured["phases"]["after"]["draft"]["mean"]
    assert summary["ita_fixed_greedy_before"] == measured["phases"]["before"]["ita_fixed_greedy"]["mean"]
    assert summary["entropy_plan_difference"] == measured["differences"]["entropy_plan"]
    assert (folder / "report.html").stat().st_size > 5000 and (folder / "environment.json").is_file()
    rows = read_lines(folder / "metrics.jsonl").rows
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(unknown_names(row.keys() - {"step", "not_finite"}) == [] for row in rows)
    moved = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert any(bool(t.any()) for name, t in moved.items() if "lora_B" in name)
    assert load_recipe(folder / "recipe.resolved.yaml") == recipe()


def test_the_gallery_shows_the_same_prompts_over_time(whole):
    folder = whole.folder
    rows = [row for row in read_lines(folder / "trajectories.jsonl").rows if row["phase"] != "train"]
    shown = {(row["phase"], row["step"]): [] for row in rows}
    for row in rows:
        shown[row["phase"], row["step"]].append(row["prompt"])
    assert set(shown) == {("before", 0), ("during", 2), ("after", 4)}, "the last step is measured, not drawn twice"
    prompts = shown["during", 2]
    assert len(prompts) == 2 and shown["before", 0][:2] == shown["after", 4][:2] == prompts
    assert all(row["rounds"][0]["score"] in (0.0, 1.0) for row in rows)
    assert "Same prompts" in (folder / "report.html").read_text()


def test_rollouts_of_some_steps_are_kept(whole):
    rows = [row for row in read_lines(whole.folder / "trajectories.jsonl").rows if row["phase"] == "train"]
    assert {row["step"] for row in rows} >= {2, 3}, (
        "every eval_steps, and the step after it, which is of the other kind"
    )
    assert {row["kept_as"] for row in rows} >= {"best", "worst", "random"}
    images = [whole.folder / "images" / this["image"] for row in rows for this in row["rounds"]]
    assert len(images) >= len(rows) > 0 and all(image.is_file() for image in images)
    assert "One random trajectory" in (whole.folder / "report.html").read_text()


def test_the_gallery_changes_nothing_of_the_training(recipe, whole):
    without = train(recipe("observe.gallery=0"), bench=bench(recipe())).folder
    assert_same_adapter(whole.folder, without)
    assert all(row["phase"] != "during" for row in read_lines(without / "trajectories.jsonl").rows)
    said = compare([whole.folder, without])
    assert "observe.gallery  2      0" in said and "Left out" not in said, "measured on the same sets"


def assert_same_adapter(one, other):
    a, b = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (one, other))
    assert all(torch.equal(a[name], b[name]) for name in a) and a.keys() == b.keys()


@pytest.mark.parametrize(("limit_s", "steps"), [(0.01, 1), (3600.0, 4)])
def test_training_leaves_time_to_measure_again(recipe, limit_s, steps):
    """However little there is, one step is made and the run is measured and reported as any other."""
    result = train(recipe(), bench=bench(recipe()), limit_s=limit_s)
    assert [row["step"] for row in read_lines(result.folder / "metrics.jsonl").rows] == list(range(1, steps + 1))
    assert result.after is not None and (result.folder / "report.html").is_file()


def test_an_interrupted_run_goes_on_where_it_was(recipe, whole, monkeypatch, capsys):
    build = runs.build_trainer

    def interrupting(*arguments):
        trainer = build(*arguments)
        trainer.on_collected = lambda step, collected: signal.raise_signal(signal.SIGINT) if step == 2 else None
        return trainer

    monkeypatch.setattr(runs, "build_trainer", interrupting)
    stopped = train(recipe(), bench=bench(recipe()))
    assert stopped.stopped_by == signal.SIGINT and stopped.after is None
    assert f"go on with: r3 train --resume {stopped.folder}" in capsys.readouterr().out
    monkeypatch.setattr(runs, "build_trainer", build)
    cut_off = stopped.folder / "checkpoints" / "checkpoint-9"
    shutil.copytree(stopped.folder / "checkpoints" / "checkpoint-3", cut_off)
    (cut_off / "trainer_state.json").unlink()
    (cut_off / "adapter_model.safetensors").write_bytes(b"half")
    recorded = (stopped.folder / "recipe.resolved.yaml").read_bytes()
    finished = train(recipe("training.save_steps=1"), bench=bench(recipe()), resume=str(stopped.folder))
    assert (stopped.folder / "recipe.resolved.yaml").read_bytes() == recorded
    (row,) = read_lines(stopped.folder / CHANGES).rows
    assert row["step"] == 3 and row["changes"] == {"training.save_steps": [2, 1]}
    assert "resuming from" in capsys.readouterr().out
    assert finished.stopped_by is None and finished.folder == stopped.folder
    assert_same_adapter(whole.folder, finished.folder)
    rows = read_lines(finished.folder / "metrics.jsonl").rows
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole.folder, finished.folder)]
    for summary in summaries:
        summary.pop("wall_s")
    assert summaries[0] == summaries[1], "before is the base's, however late it is measured"


def test_full_weights_leave_a_folder_that_loads(recipe, base):
    folder = train(
        recipe("lora.enabled=false", "algorithm.beta=0.1", "training.max_steps=2"), bench=bench(recipe())
    ).folder
    trained, plain = load_bagel(folder / "model").state_dict(), load_bagel(base).state_dict()
    moved = {name for name in plain if not torch.equal(trained[name], plain[name])}
    assert moved and all(".layers." in name and "vit_model" not in name for name in moved)
    assert (folder / "model" / "tokenizer.json").is_file()


def test_sharded_full_weights_are_measured_against_their_base(recipe, base, monkeypatch):
    """The swap test asks the base after training; shards keep it for the KL terms only."""
    loaded, load = [], runs.load_policy
    monkeypatch.setattr(runs, "load_policy", lambda *a, **k: loaded.append(load(*a, **k)) or loaded[-1])
    changes = ("lora.enabled=false", "training.parallel.kind=fsdp2", "training.max_steps=2")
    folder = train(recipe(*changes), bench=bench(recipe())).folder
    policy, plain = loaded[0].policy, load_bagel(base).state_dict()
    trained = {name: tensor.detach().clone() for name, tensor in policy.module.named_parameters()}
    with policy.reference():
        found = dict(policy.module.named_parameters())
        assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert any(not torch.equal(trained[name], plain[name]) for name in plain)
    exported = load_bagel(folder / "model").state_dict()
    assert all(torch.equal(exported[name], trained[name]) for name in plain), "the folder holds whole weights"


def test_prompts_from_a_file_are_judged_by_the_panel(recipe):
    folder = train(
        recipe("data.kind=jsonl", "data.tags=null", "data.path=prompts.jsonl", "eval_rewards=[]", "observe.gallery=3")
    ).folder
    rows = read_lines(folder / "trajectories.jsonl").rows
    assert {row["phase"] for row in rows} == {"train", "during"}
    rows = [row for row in rows if row["phase"] == "during"]
    assert len(rows) == 3
    assert all(0 < row["rounds"][0]["scores"]["red"] < 1 for row in rows)
    assert not (folder / "summary.json").exists(), "nothing was measured before and after"


def test_what_cannot_be_resumed_is_refused(recipe, tmp_path):
    with pytest.raises(InputError, match="no run folder at"):
        train(recipe(), resume=str(tmp_path / "nowhere"))
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "empty" / "recipe.resolved.yaml").write_text(dump_resolved(recipe()))
    with pytest.raises(InputError, match="holds no checkpoint"):
        train(recipe(), resume=str(tmp_path / "empty"))


def test_a_run_that_another_process_writes_is_left_alone(recipe, whole):
    """Before anything is loaded, and before a file of the run is touched."""
    before = {path: path.stat().st_mtime_ns for path in whole.folder.iterdir() if path.name != LOCK}
    hold = "import sys, time; from pathlib import Path; from r3_rl.observe.lock import sole_writer\n"
    hold += "with sole_writer(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold, str(whole.folder)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(RunError, match=f"is being written by process {other.pid} "):
            train(recipe(), resume=str(whole.folder))
        other.kill()
    assert {path: path.stat().st_mtime_ns for path in whole.folder.iterdir() if path.name != LOCK} == before


def test_nodes_that_the_world_draws_are_scored_by_the_panel():
    """Not by the exact judge: its 0 against a score in part after the refinement would be a gain for nothing."""

    def partly(images, **columns):
        return [None if i == 2 else 0.25 + i / 100 for i in range(len(images))]

    with Panel([ScorerSpec(name="partly", scorer=partly)]) as panel:
        nodes = synthetic_nodes(find_world(), 4, 0, panel=panel, tags=find_world().tags, right_share=0.5)
        panel.score(ScoreBatch(prompts=[Prompt(text="a red circle")], images=[np.zeros((36, 36, 3), np.uint8)]))
        numbers = panel.metrics()
    assert [node.score for node in nodes] == [0.25, 0.26, 0.28], "without a score an image is no node"
    assert nodes[0].verdict.scores == {"partly": 0.25} and nodes[0].image.shape == (3, 36, 36)
    assert numbers["rewards/partly/mean"] == 0.25, "the policy's own images only"
    assert numbers["rewards/partly/missing_fraction"] == 0


def test_scorers_end_with_the_run_even_when_it_fails(recipe, monkeypatch):
    closed = []
    build = runs.build_trainer

    def failing(*arguments):
        trainer = build(*arguments)
        close = trainer.close
        trainer.close = lambda: (closed.append(True), close())
        trainer.on_collected = lambda step, collected: 1 / 0
        return trainer

    monkeypatch.setattr(runs, "build_trainer", failing)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError):
        train(recipe(), bench=bench(recipe()))
    assert closed == [True]
    assert signal.getsignal(signal.SIGINT) is before, "Ctrl-C is the process's own again"
