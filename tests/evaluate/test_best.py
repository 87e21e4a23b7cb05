"""`eval.keep_best` on planted metrics: which step is kept, when the run stops, what survives an interrupt."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from r3_rl.benches.subjects import find_subjects
from r3_rl.errors import InputError
from r3_rl.evaluate import run as runs
from r3_rl.evaluate.run import train
from r3_rl.observe.course import Metric, best_folder
from r3_rl.observe.ending import read_ending
from r3_rl.observe.statistics import Interval
from r3_rl.policy.adapter_files import ROUTED_WEIGHTS_NAME
from r3_rl.policy.routing import routing_of
from r3_rl.recipe_io import load_recipe
from tests.docs.world import world_folder
from tests.evaluate.test_run import PLAIN

WEIGHTS = "adapter_model.safetensors"
RISES_AND_FALLS = {0: 0.2, 1: 0.3, 2: 0.5, 3: 0.7, 4: 0.6}


@dataclass(frozen=True, kw_only=True, eq=False)
class Planted:
    """Measures whose metric is written down beforehand, by step."""

    folder: Path
    values: Mapping[int, float | None]
    wanted: str = "more"
    marks: str = ""
    asked: list[int] = field(default_factory=list)

    @property
    def metric(self) -> Metric:
        return Metric(name="planted/value", words="planted: value", unit="share", wanted=self.wanted, marks=self.marks)

    def before(self) -> None:
        (self.folder / "eval").mkdir(exist_ok=True)

    def during(self, step: int) -> None:
        self.asked.append(step)

    def after(self, step: int) -> dict[str, Any]:
        return {"planted": {"value": {}}}

    def read(self, step: int) -> Interval | None:
        value = self.values[step]
        return None if value is None else Interval(mean=value, low=value - 0.1, high=value + 0.1, count=4)


def planted(values=RISES_AND_FALLS, **more):
    """What `train` takes for the benches of a recipe."""
    return lambda recipe, loaded, folder, first_step: Planted(folder=folder, values=values, **more)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with weights, a prompt file, a scorer and a recipe that keeps the best adapter."""
    place = tmp_path_factory.mktemp("place")
    world_folder(place / "base")
    (place / "red.py").write_text("def red(images, **columns):\n    return [float(i[..., 0].mean()) for i in images]\n")
    (place / "prompts.jsonl").write_text("".join(f'{{"prompt": "a {c} circle"}}\n' for c in ("red", "blue", "green")))
    (place / "mine.yaml").write_text(
        "extends: shapes_r3\n"
        "data: {kind: jsonl, tags: null, path: prompts.jsonl}\n"
        "rewards: [{scorer: ./red.py:red}]\n"
        "eval_rewards: []\n"
        "eval: {benches: {shapes: null}, keep_best: true}\n"
    )
    return place


@pytest.fixture
def recipe(place, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    plain = [*PLAIN, f"model.path={place / 'base'}", f"training.output_dir={tmp_path / 'runs'}"]
    plain += ["training.save_steps=1", "training.eval_steps=1", "observe.gallery=0"]
    return lambda *overrides: load_recipe("mine.yaml", [*plain, *overrides])


def interrupted(monkeypatch, at: int):
    """Let the next run get a SIGINT while it rolls out the step after `at` steps."""
    build = runs.build_trainer

    def interrupting(*arguments):
        trainer = build(*arguments)
        trainer.on_collected = lambda step, collected: signal.raise_signal(signal.SIGINT) if step == at else None
        return trainer

    monkeypatch.setattr(runs, "build_trainer", interrupting)
    return lambda: monkeypatch.setattr(runs, "build_trainer", build)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_kept_adapter_is_that_of_the_best_step(recipe, capsys):
    done = train(recipe(), further=planted())
    best = done.folder / "best"
    steps = {step: done.folder / "checkpoints" / f"checkpoint-{step}" / WEIGHTS for step in (3, 4)}
    assert (best / WEIGHTS).read_bytes() == steps[3].read_bytes()
    assert steps[3].read_bytes() != steps[4].read_bytes(), "a test that could not fail"
    assert (done.folder / "adapter" / WEIGHTS).read_bytes() == steps[4].read_bytes()
    said = json.loads((best / "best.json").read_text())
    assert said == {
        "step": 3, "metric": "planted/value", "words": "planted: value", "wanted": "more", "unit": "share",
        "value": 0.7, "low": 0.7 - 0.1, "high": 0.7 + 0.1, "count": 4,
    }  # fmt: skip
    assert json.loads((done.folder / "summary.json").read_text())["best"] == said
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        f"best adapter: {best}, of step 3: planted/value 70.0 % (60.0 to 80.0); "
        "before training 20.0 % (10.0 to 30.0), after the last step 60.0 % (50.0 to 70.0)"
    )
    state = json.loads((steps[4].parent / "trainer_state.json").read_text())
    assert (state["best_metric"], state["best_global_step"]) == (0.7, 3)
    assert best_folder(done.folder) == best and not list(done.folder.glob(".best*"))


def test_less_is_better_where_it_is_wanted(recipe):
    done = train(recipe("eval.wanted=less"), further=planted(wanted="less"))
    assert json.loads((done.folder / "best" / "best.json").read_text())["step"] == 1


def test_a_run_that_gets_no_better_ends_normally_and_says_why(recipe, capsys):
    values = {**RISES_AND_FALLS, **{step: 0.1 for step in range(5, 10)}}
    done = train(recipe("eval.patience=2", "training.max_steps=9"), further=planted(values))
    words = (
        "stopped early at step 5 of 9: 2 measurements after step 3 brought no better planted/value than its 70.0 % "
        "(60.0 to 80.0); a larger eval.patience goes on"
    )
    assert done.exit_code == 0 and done.ending.why == "metric" and done.ending.words == words
    summary = json.loads((done.folder / "summary.json").read_text())
    assert summary["ended"] == {"step": 5, "num_steps": 9, "why": "metric", "words": words}
    assert summary["best"]["step"] == 3 and read_ending(done.folder) == done.ending
    assert (done.folder / "adapter" / WEIGHTS).is_file() and words in capsys.readouterr().out
    assert "Ended early, at step 5 of 9" in (done.folder / "report.html").read_text()
    again = train(recipe("eval.patience=2", "training.max_steps=9"), resume=str(done.folder), further=planted(values))
    assert "nothing is left to do" in capsys.readouterr().out and again.exit_code == 0
    longer = train(recipe("eval.patience=4", "training.max_steps=9"), resume=str(done.folder), further=planted(values))
    assert (longer.ending.why, longer.ending.step) == ("metric", 7)


def test_a_small_gain_is_kept_but_does_not_count_for_patience(recipe):
    values = {0: 0.1, 1: 0.5, 2: 0.52, 3: 0.54, 4: 0.56}
    done = train(recipe("eval.patience=2", "eval.min_gain=0.1"), further=planted(values))
    assert done.ending.step == 3 and json.loads((done.folder / "best" / "best.json").read_text())["step"] == 3


def test_a_resumed_run_keeps_what_the_uninterrupted_one_keeps(recipe, monkeypatch):
    values = {0: 0.2, 1: 0.7, 2: 0.3, 3: 0.5, 4: 0.6}
    whole = train(recipe(), name="whole", further=planted(values))
    restore = interrupted(monkeypatch, at=1)
    stopped = train(recipe(), name="cut", further=planted(values))
    assert stopped.stopped_by == signal.SIGINT and stopped.ending.step == 2
    restore()
    shutil.rmtree(stopped.folder / "best")  # as if the machine had gone while another one was written
    resumed = train(recipe(), resume=str(stopped.folder), further=planted(values))
    assert files_of(resumed.folder / "best").keys() == files_of(whole.folder / "best").keys()
    for name, content in files_of(resumed.folder / "best").items():
        if not name.endswith(".yaml"):  # names the folder of runs
            assert content == files_of(whole.folder / "best")[name], name
    course = (whole.folder / "eval" / "course.json").read_text()
    assert (resumed.folder / "eval" / "course.json").read_text() == course


def test_a_later_best_is_passed_over_with_its_checkpoints(recipe, capsys):
    done = train(recipe(), further=planted({0: 0.1, 1: 0.3, 2: 0.2, 3: 0.2, 4: 0.9}))
    place = done.folder / "checkpoints" / "checkpoint-3"
    earlier = (place / "best" / WEIGHTS).read_bytes()
    assert (done.folder / "best" / WEIGHTS).read_bytes() != earlier
    changed = recipe("training.learning_rate=0.001")
    other = train(changed, resume=str(place), further=planted({0: 0.1, 4: 0.1}))
    assert (other.folder / "best" / WEIGHTS).read_bytes() == earlier
    assert json.loads((other.folder / "passed-over-best" / "best.json").read_text())["step"] == 4
    assert "is not of this course, and kept as passed-over-best" in capsys.readouterr().out


def test_another_metric_begins_anew(recipe, capsys):
    done = train(recipe("training.max_steps=3"), further=planted())
    other = train(recipe(), resume=str(done.folder), further=planted(marks="other items"))
    assert "earlier steps do not count" in capsys.readouterr().out
    assert json.loads((other.folder / "best" / "best.json").read_text())["step"] == 4


def test_a_step_without_a_value_is_passed_over(recipe, capsys):
    done = train(recipe("eval.patience=3"), further=planted({0: None, 1: 0.3, 2: None, 3: 0.2, 4: 0.4}))
    out = capsys.readouterr().out
    assert "step 2: no item has planted/value, so the step is passed over" in out and done.ending.why == "done"
    assert json.loads((done.folder / "best" / "best.json").read_text())["step"] == 4


def test_the_last_step_is_looked_at_if_it_falls_between(recipe):
    done = train(recipe("training.eval_steps=3"), further=planted({0: 0.1, 3: 0.2, 4: 0.9}))
    best = done.folder / "best" / WEIGHTS
    assert best.read_bytes() == (done.folder / "adapter" / WEIGHTS).read_bytes()


def test_full_weights_are_kept_in_a_folder_that_loads(recipe):
    done = train(recipe("lora.enabled=false"), further=planted())
    best, last = done.folder / "best", done.folder / "model" / "ema.safetensors"
    assert (best / "ema.safetensors").read_bytes() != last.read_bytes()
    subjects = find_subjects(str(best), against=str(done.folder))
    assert [subject.key for subject in subjects.models] == ["base", "trained", "other"], "one base for both"


@pytest.mark.parametrize("routing", ["split", "routed"])
def test_the_adapters_of_all_stages_are_kept_together(recipe, routing):
    done = train(recipe(f"balance.routing={routing}"), further=planted())
    best, checkpoints = done.folder / "best", done.folder / "checkpoints"
    kept = (best / ROUTED_WEIGHTS_NAME).read_bytes()
    assert kept == (checkpoints / "checkpoint-3" / ROUTED_WEIGHTS_NAME).read_bytes()
    assert kept != (checkpoints / "checkpoint-4" / ROUTED_WEIGHTS_NAME).read_bytes()
    found = find_subjects(str(best))
    assert routing_of(found.first.policy.module).kind == routing
    assert [model.key for model in found.models] == ["base", "trained"]


def test_a_run_without_a_best_adapter_says_how_to_keep_one(tmp_path):
    with pytest.raises(InputError, match=r"has kept no best adapter; `eval.keep_best: true`"):
        best_folder(tmp_path)
