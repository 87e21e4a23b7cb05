"""Section `eval` of a recipe: benches before, during and after a training, measured once, and what a run tells."""

from __future__ import annotations

import json
import signal
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
    ],
)
def test_a_bad_bench_is_one_line_of_r3_check(recipe, r3, override, said):
    done = r3("check", "mine.yaml", "model.path=base", override)
    assert done.code == 2 and said in done.err and done.err.count("\n") == 1


def test_a_broken_file_is_said_before_a_model_is_loaded(recipe, r3, monkeypatch, tmp_path):
    (tmp_path / "coco_pope_random.json").write_text("{")
    monkeypatch.setattr("r3_rl.process.prepare_process", lambda *_: None)  # it would replace this process
    monkeypatch.setattr(runs, "train", lambda *_, **__: pytest.fail("the run was begun"))
    done = r3("train", "mine.yaml", "model.path=base", f"eval.benches={{pope: {tmp_path}}}")
    assert done.code == 2 and "coco_pope_random.json:1: not a line of JSON" in done.err
