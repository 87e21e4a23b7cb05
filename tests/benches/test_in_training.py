"""Section `eval` of a recipe: benches before, during and after a training, measured once, and what a run tells."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from r3_rl.benches import work
from r3_rl.benches.in_training import RunBenches
from r3_rl.benches.made import write_sets
from r3_rl.errors import InputError
from r3_rl.evaluate import run as runs
from r3_rl.evaluate.run import train
from r3_rl.export import export
from r3_rl.recipe_io import load_recipe
from tests.conftest import REPOSITORY
from tests.docs.world import world_folder
from tests.evaluate.test_run import PLAIN

MINE = """
extends: shapes_r3
data: {kind: jsonl, tags: null, path: prompts.jsonl}
rewards: [{scorer: ./red.py:red}]
eval_rewards: []
eval: {benches: {shapes: null, pope: sets/pope}, rounds: [0, 1], limit: 2, during: true}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with weights, a prompt file, a scorer, questions and a recipe that names them."""
    place = tmp_path_factory.mktemp("place")
    world_folder(place / "base")
    write_sets(place / "sets", count=2)
    (place / "red.py").write_text("def red(images, **columns):\n    return [float(i[..., 0].mean()) for i in images]\n")
    (place / "prompts.jsonl").write_text("".join(f'{{"prompt": "a {c} circle"}}\n' for c in ("red", "blue", "green")))
    (place / "mine.yaml").write_text(MINE)
    return place


@pytest.fixture
def recipe(place, monkeypatch):
    monkeypatch.chdir(place)
    places = [f"model.path={place / 'base'}", f"training.output_dir={place / 'runs'}", "training.save_steps=1"]
    return lambda *overrides: load_recipe("mine.yaml", [*PLAIN, *places, *overrides])


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """The files of the batches that are measured, as they are."""
    seen: list[str] = []
    keep = work._keep
    monkeypatch.setattr(
        work, "_keep", lambda folder, batch, samples: (seen.append(batch.file), keep(folder, batch, samples))
    )
    return seen


def models_in(files) -> set[str]:
    return {file.split("/")[2] for file in files}


def adapter_of(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_a_run_is_measured_once_and_says_so_everywhere(recipe, measured, tmp_path):
    folder = train(recipe(), name="whole", further=RunBenches).folder
    assert models_in(measured) == {"base", "step-2", "trained"} and len(set(measured)) == len(measured)
    table = json.loads((folder / "eval" / "table.json").read_text())
    assert list(table["models"]) == ["base", "step-2", "trained"]
    summary = json.loads((folder / "summary.json").read_text())
    pope = summary["benches"]["pope.random"]["accuracy"]
    assert set(pope) == {"before", "after", "difference"} and pope["difference"]["count"] == 2
    assert {"shapes.drawing", "shapes.pairs", "pope.random"} <= set(summary["benches"])
    page = (folder / "report.html").read_text()
    assert "Benches" in page and "eval/index.html" in page and (folder / "eval" / "index.html").is_file()
    card = (export(folder, tmp_path / "out").folder / "README.md").read_text()
    assert "Benches, with 95 % intervals" in card and "POPE" in card
    without = train(recipe("eval.during=false"), name="without", further=RunBenches).folder
    one, other = adapter_of(folder), adapter_of(without)
    assert all(torch.equal(one[name], other[name]) for name in one), "measuring changes nothing of the training"


def test_a_resumed_run_measures_nothing_twice(recipe, measured, monkeypatch):
    build = runs.build_trainer

    def interrupting(*arguments):
        trainer = build(*arguments)
        trainer.on_collected = lambda step, collected: signal.raise_signal(signal.SIGINT) if step == 2 else None
        return trainer

    monkeypatch.setattr(runs, "build_trainer", interrupting)
    stopped = train(recipe(), name="cut", further=RunBenches)
    assert stopped.stopped_by == signal.SIGINT and models_in(measured) == {"base", "step-2"}
    monkeypatch.setattr(runs, "build_trainer", build)
    finished = train(recipe(), resume=str(stopped.folder), further=RunBenches)
    assert len(set(measured)) == len(measured) and models_in(measured) == {"base", "step-2", "trained"}
    table = json.loads((finished.folder / "eval" / "table.json").read_text())
    assert list(table["models"]) == ["base", "step-2", "trained"]
    measured.clear()
    longer = train(recipe("training.max_steps=5"), resume=str(stopped.folder), further=RunBenches)
    assert models_in(measured) == {"trained"}, "of other weights"
    table = json.loads((longer.folder / "eval" / "table.json").read_text())
    assert list(table["models"]) == ["base", "step-2", "trained"] and "5 steps" in table["models"]["trained"]


def test_benches_that_nobody_would_measure_are_refused(recipe):
    with pytest.raises(InputError, match="names benches in its section 'eval'"):
        train(recipe())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("eval.benches={shapez: null}", "eval.benches.shapez: no bench is called 'shapez'; did you mean 'shapes'?"),
        ("eval.benches={pope: null}", "eval.benches.pope: it reads files; name them with eval.benches.pope=PATH"),
        ("eval.benches={pope: nowhere}", "no such file or folder"),
        (
            "eval.benches={shapes: sets}",
            "eval.benches.shapes: the benches of a world read no files; write shapes: null",
        ),
        ("eval.scorers=nowhere.yaml", "eval.scorers: no such file"),
        ("eval.rounds=[0, 17]", "eval.rounds"),
        ("eval.limit=0", "eval.limit"),
        (
            ["eval.keep_best=true", "eval.metric=shapes.drawing/rond_1"],
            "eval.metric: no figure is called 'shapes.drawing/rond_1'; did you mean 'shapes.drawing/round_1'?",
        ),
        (
            ["eval.keep_best=true", "eval.metric=shapes/drft"],
            "eval.metric: no figure is called 'shapes/drft'; did you mean 'shapes.drawing/draft'?",
        ),
        (
            ["eval.keep_best=true", "eval.metric=xyz"],
            "no figure is called 'xyz'; such as shapes.drawing/draft, shapes.drawing/round_1",
        ),
        (
            ["eval.keep_best=true", "eval.metric=shapes.drawing/gain_1"],
            "'shapes.drawing/gain_1' is better neither higher nor lower by itself; say more or less with eval.wanted",
        ),
        (
            ["eval.keep_best=true", "lora.enabled=false", "training.parallel.kind=fsdp2"],
            "eval.keep_best: full weights in shards are not kept step by step; use lora, or leave it out",
        ),
        (["eval.keep_best=true", "eval.benches={}"], "eval.keep_best: nothing says which step is the best"),
        ("eval.patience=2", "eval.patience: nothing follows it; set eval.keep_best to true"),
        (["eval.keep_best=true", "eval.min_gain=0.1"], "eval.min_gain: nothing follows it; set eval.patience"),
    ],
)
def test_a_bad_bench_is_one_line_of_r3_check(recipe, r3, override, said):
    overrides = [override] if isinstance(override, str) else override
    done = r3("check", "mine.yaml", "model.path=base", *overrides)
    assert done.code == 2 and said in done.err and done.err.count("\n") == 1


def test_a_broken_file_is_said_before_a_model_is_loaded(recipe, r3, monkeypatch, tmp_path):
    (tmp_path / "coco_pope_random.json").write_text("{")
    monkeypatch.setattr("r3_rl.process.prepare_process", lambda *_: None)  # it would replace this process
    monkeypatch.setattr(runs, "train", lambda *_, **__: pytest.fail("the run was begun"))
    done = r3("train", "mine.yaml", "model.path=base", f"eval.benches={{pope: {tmp_path}}}")
    assert done.code == 2 and "coco_pope_random.json:1: not a line of JSON" in done.err


@pytest.mark.processes
def test_an_unknown_metric_is_said_before_a_model_is_loaded(recipe, place):
    """In a process of its own: what looks the figure up loads torch, which must not come before the threads are set."""
    told = ["model.path=base", "eval.keep_best=true", "eval.metric=pope.random/accurate", "training.output_dir=told"]
    done = subprocess.run(
        [sys.executable, "-m", "r3_rl", "train", "mine.yaml", *told],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "did you mean 'pope.random/accuracy'?" in done.stderr and not (place / "told").exists()


def test_the_best_adapter_is_found_by_those_who_want_it(recipe, r3, tmp_path, capsys):
    run = train(recipe("eval.keep_best=true", "eval.benches={pope: sets/pope}"), further=RunBenches)
    said = json.loads((run.folder / "best" / "best.json").read_text())
    table = json.loads((run.folder / "eval" / "table.json").read_text())
    (accuracy,) = (row for row in table["benches"][0]["figures"] if row["name"] == "accuracy")
    models = accuracy["decodings"]["greedy"]["models"]
    best = {2: "step-2", 4: "trained"}[said["step"]]
    assert said["metric"] == "pope.random/accuracy" and said["value"] == models[best]["mean"]
    assert said["value"] == max(models["step-2"]["mean"], models["trained"]["mean"])
    assert f"best adapter: {run.folder / 'best'}, of step {said['step']}" in capsys.readouterr().out.splitlines()[-1]
    report = (run.folder / "report.html").read_text()
    assert f"Ringed: step {said['step']}" in report and "line ring" in report

    adapter = (run.folder / "adapter" / "adapter_model.safetensors").read_bytes()
    assert r3("export", str(run.folder), "--best").code == 0
    card = (run.folder / "best" / "README.md").read_text()
    assert f"weights of step {said['step']}" in card and "pope.random/accuracy" in card
    assert (run.folder / "adapter" / "adapter_model.safetensors").read_bytes() == adapter, "the last step's stays"
    assert not (run.folder / "adapter" / "README.md").exists()
    none = r3("export", str(tmp_path), "--best")
    assert none.code == 2 and "has kept no best adapter; `eval.keep_best: true` in a recipe keeps one" in none.err


@pytest.mark.processes
@pytest.mark.slow
def test_two_processes_stop_at_the_same_step_and_keep_one_adapter(place, tmp_path):
    settings = ["training.learning_rate=1.0e-9", "training.max_steps=9", "training.eval_steps=1", "eval.rounds=[0]"]
    settings += ["eval.benches={pope: sets/pope}", "eval.keep_best=true", "eval.patience=1", "observe.gallery=0"]
    places = [f"model.path={place / 'base'}", f"training.output_dir={tmp_path}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "r3_rl"]
    done = subprocess.run(
        [*command, "train", "mine.yaml", *PLAIN, *places, *settings],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "mine" / "summary.json").read_text())
    assert (summary["ended"]["step"], summary["ended"]["why"], summary["best"]["step"]) == (2, "metric", 1)
    assert "best adapter: " in done.stdout.splitlines()[-1] and done.stdout.count("best adapter: ") == 1
    assert (tmp_path / "mine" / "best" / "adapter_model.safetensors").is_file()
