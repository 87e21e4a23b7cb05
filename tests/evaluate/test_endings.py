"""How a run ends, and that it says so: by its last step, its clock, a guard, a signal before its first step."""

from __future__ import annotations

import json
import signal

import pytest

from r3_rl.errors import InputError
from r3_rl.evaluate import run as runs
from r3_rl.evaluate.run import GUARD_STOPPED, train
from r3_rl.observe.ending import Ending, read_ending
from r3_rl.observe.lock import LOCK
from r3_rl.observe.recorder import read_lines
from r3_rl.recipe_io import load_recipe
from r3_rl.training.manifest import numbered
from tests.docs.world import world_folder

SCORERS = """def red(images, **columns):
    return [float(image[..., 0].mean()) / 255 for image in images]

def sometimes(images, **columns):
    return [None if i == 0 else score for i, score in enumerate(red(images))]
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Two prompts of a file, so that nothing is measured."""
    monkeypatch.chdir(tmp_path)
    world_folder(tmp_path / "model")
    (tmp_path / "scorers.py").write_text(SCORERS)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a red circle"}\n{"prompt": "a blue circle"}\n')
    (tmp_path / "mine.yaml").write_text(
        "extends: shapes_draft_only\n"
        "model: {path: model}\n"
        "data: {kind: jsonl, path: prompts.jsonl, tags: null}\n"
        'rewards: [{scorer: "./scorers.py:red"}]\n'
        "eval_rewards: []\n"
        "rollout:\n"
        "  num_prompts: 2\n"
        "  branch: {plan: 2, draft: 1, critique: 1, refinement: 1}\n"
        "  draft: {num_steps: 2, window_size: null}\n"
        "  plan: {max_new_tokens: 4}\n"
        "training: {max_steps: 3, save_steps: 1000, num_threads: 1}\n"
        "observe: {gallery: 0}\n"
    )

    def made(*overrides):
        return load_recipe("mine.yaml", overrides)

    return made


def test_a_guard_that_stops_leaves_a_checkpoint_a_report_and_an_exit_code(recipe, capsys):
    changes = ['rewards=[{scorer: "./scorers.py:sometimes"}]', "algorithm.max_failed_fraction=1.0"]
    stopped = train(recipe(*changes, "guards.missing_scores=stop", "training.max_steps=9"))
    out, folder = capsys.readouterr().out, stopped.folder
    assert stopped.exit_code == GUARD_STOPPED == 3 and stopped.after is None
    assert "guard missing_scores stops the run at step 1: scores were missing in 1 of 1 step" in out
    assert f"stopped by guard missing_scores at step 1; go on with: r3 train --resume {folder}" in out
    assert [path.name for path in numbered(folder / "checkpoints")] == ["checkpoint-1"]
    ending = read_ending(folder)
    assert ending is not None and (ending.step, ending.num_steps, ending.why) == (1, 9, "guard")
    report = (folder / "report.html").read_text()
    assert "Ended early, at step 1 of 9" in report and "Guard missing_scores stops the run at step 1" in report
    assert not (folder / "adapter").exists()
    resumed = train(recipe(*changes, "guards.missing_scores=warn", "training.max_steps=2"), resume=str(folder))
    assert resumed.exit_code == 0 and resumed.ending == Ending(step=2, num_steps=2, why="done")
    again = capsys.readouterr().out
    assert "guard missing_scores" not in again, "said before"
    report = (folder / "report.html").read_text()
    assert "Ended early" not in report
    assert "from step 1 on guards.missing_scores: stop -&gt; warn" in report


def test_a_guard_that_is_off_says_nothing(recipe, capsys):
    changes = ['rewards=[{scorer: "./scorers.py:sometimes"}]', "algorithm.max_failed_fraction=1.0"]
    done = train(recipe(*changes, "guards.missing_scores=off"))
    assert "guard" not in capsys.readouterr().out and done.exit_code == 0
    assert "cores were missing" not in (done.folder / "report.html").read_text()


def test_a_run_that_its_clock_ends_says_so_and_what_would_do(recipe, capsys):
    for options, limit in (({"limit_s": 0.01}, "r3 demo --minutes "), ({}, "training.time_budget_s=")):
        done = train(recipe(*([] if options else ["training.time_budget_s=0.001"])), **options)
        sentence = "ended by its clock at step 1 of 3; all of them take "
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(sentence)]
        assert limit in line and int(line.rpartition(limit)[2]) > 0
        assert "nded by its clock at step 1 of 3; " in (done.folder / "report.html").read_text()
        assert done.exit_code == 0 and (done.folder / "adapter").is_dir()
    assert read_ending(train(recipe()).folder) == Ending(step=3, num_steps=3, why="done")
    assert "its clock" not in capsys.readouterr().out


def test_a_finished_run_that_is_resumed_says_that_nothing_is_left(recipe, capsys, monkeypatch):
    folder = train(recipe()).folder
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != LOCK}
    monkeypatch.setattr(runs, "load_policy", lambda *arguments, **options: pytest.fail("nothing is to be loaded"))
    capsys.readouterr()
    assert train(recipe(), resume=str(folder)).exit_code == 0
    assert "nothing is left to do: " in capsys.readouterr().out
    with pytest.raises(InputError, match=r"is at step 3, so of training.max_steps 2 nothing is left to do"):
        train(recipe("training.max_steps=2"), resume=str(folder))
    assert files == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != LOCK}
    monkeypatch.undo()


def test_a_run_that_was_killed_after_its_last_step_is_finished(recipe, capsys):
    folder = train(recipe()).folder
    for name in ("ended.json", "report.html"):
        (folder / name).unlink()
    assert train(recipe(), resume=str(folder)).exit_code == 0
    assert "nothing is left" not in capsys.readouterr().out and (folder / "report.html").is_file()
    assert len(read_lines(folder / "metrics.jsonl").rows) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1], ids=lambda n: n.name)
def test_a_signal_before_the_first_step_says_whether_there_is_something_to_go_on_from(
    recipe, capsys, monkeypatch, number
):
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip(f"{number.name} is ignored by whoever started the tests (nohup does), and then by a run")
    before = signal.getsignal(number)
    folder = train(recipe("training.max_steps=1")).folder
    monkeypatch.setattr(runs, "build_trainer", lambda *arguments: signal.raise_signal(number))
    capsys.readouterr()
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(recipe(), resume=str(folder))
    assert stopped.value.args == (number,)
    said = capsys.readouterr().out
    assert f"stopped by {number.name}; go on with: r3 train --resume {folder}" in said
    with pytest.raises(KeyboardInterrupt):
        train(recipe())
    assert f"stopped by {number.name}; nothing is saved yet, start the run again" in capsys.readouterr().out
    assert signal.getsignal(number) is before


def test_an_ending_that_cannot_be_read_is_none(tmp_path):
    for text in ("{", "[]", json.dumps({"step": 1})):
        (tmp_path / "ended.json").write_text(text)
        assert read_ending(tmp_path) is None
