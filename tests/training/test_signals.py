"""A signal finishes the step, saves and stops; a second one stops immediately, whatever scorers are doing."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from r3_rl.training.manifest import checked, numbered
from r3_rl.training.signals import ENDING, SignalCallback
from tests.docs.world import world_folder
from tests.training.processes import fork
from tests.training.test_trainer import make, run

ROOT = Path(__file__).parents[2]
ALL = (*ENDING, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def _signals():
    """A shell's background job starts with Ctrl-C ignored, nohup with SIGHUP."""
    old = [(number, signal.signal(number, signal.SIG_DFL)) for number in ALL]
    yield
    for number, handler in old:
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ALL, ids=lambda number: number.name)
def test_the_first_signal_finishes_and_saves(tmp_path, capfd, number):
    trainer = make(tmp_path, max_steps=50, schedule="draft_only", num_iterations=2, save_steps=2)
    callback = SignalCallback()
    trainer.add_callback(callback)
    trainer.on_collected = lambda step, collected: signal.raise_signal(number) if step == 2 else None
    run(trainer)
    assert callback.asked == number and trainer.state.global_step == 4, "begun rollouts get all their updates"
    assert checked(tmp_path / "checkpoint-4").step == 4
    assert f"{number.name}: finishing the step" in capfd.readouterr().out
    assert signal.getsignal(number) == signal.SIG_DFL, "given back"


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGHUP, signal.SIGTERM)])
def test_the_second_signal_stops_immediately(tmp_path, numbers):
    trainer = make(tmp_path, max_steps=50, schedule="draft_only")
    trainer.on_collected = lambda step, collected: [signal.raise_signal(number) for number in numbers]
    with pytest.raises(KeyboardInterrupt) as stopped, SignalCallback() as callback:
        trainer.add_callback(callback)
        trainer.train()
    trainer.close()
    assert stopped.value.args == (numbers[1],) and not numbered(tmp_path)
    assert all(signal.getsignal(number) == signal.SIG_DFL for number in ALL)


@pytest.mark.parametrize(
    ("number", "environment"), [(signal.SIGHUP, {}), (signal.SIGINT, {"RANK": "0"}), (signal.SIGTERM, {"RANK": "1"})]
)
def test_the_same_signal_sent_by_two_is_one(tmp_path, number, environment):
    """By a terminal and its shell; by a terminal and the launcher."""
    trainer = make(tmp_path, max_steps=50, schedule="draft_only")
    trainer.on_collected = lambda step, collected: [signal.raise_signal(number) for _ in range(2)]
    trainer.add_callback(SignalCallback(environment))
    run(trainer)
    assert trainer.state.global_step == 1


def test_what_somebody_else_listens_to_is_left_alone(tmp_path):
    heard = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda *_: heard.append("usr1"))
    trainer = make(tmp_path, max_steps=2, schedule="draft_only")
    trainer.on_collected = lambda *_: [signal.raise_signal(s) for s in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)]
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    trainer.add_callback(SignalCallback())
    run(trainer)
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    assert trainer.state.global_step == 2 and heard == ["usr1"] * 2


@pytest.mark.parametrize("engine", [{}, {"full": "float32", "parallel": "fsdp2"}], ids=["ddp", "fsdp2"])
def test_all_processes_stop_at_the_same_step(tmp_path, engine):
    """Though the signal came to the second one alone. What they save is whole, and one process goes on from it."""
    options = {"schedule": "draft_only", "max_steps": 9, **engine}
    fork(2, tmp_path, "train", {**options, "stop": [1, 2, "SIGTERM"]}, None)
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [len(numbers["rows"]) for numbers in seen] == [3, 3]
    assert [folder.name for folder in numbered(tmp_path / "run")] == ["checkpoint-3"]
    (tmp_path / "one").mkdir()
    alone = {**options, "max_steps": 4, **({"parallel": "single"} if engine else {})}
    fork(1, tmp_path / "one", "resume", alone, str(tmp_path / "run" / "checkpoint-3"))
    assert len(json.loads((tmp_path / "one" / "0.json").read_text())["rows"]) == 4


# What follows starts `r3 train` as a user does.

RECIPE = """version: 1
data: {kind: jsonl, path: prompts.jsonl}
model: {kind: embedded, path: model}
rollout:
  num_prompts: 1
  branch: {plan: 2, draft: 1, critique: 1, refinement: 1}
  draft: {num_steps: 2, window_size: null}
  plan: {max_new_tokens: 4}
  protocol: compact
rewards: [{scorer: "./slow.py:slow"}]
algorithm: {schedule: draft_only, max_zero_variance_steps: 1000}
training: {max_steps: 100000, save_steps: 100000, learning_rate: 0.01, num_threads: 1}
observe: {gallery: 0}
"""
SLOW = """import os, pathlib, random, time
def slow(images, **columns):
    for begun in pathlib.Path(os.environ["PLACE"]).glob("block"):
        begun.rename(begun.with_name("blocking"))
        time.sleep(600)
    pathlib.Path(os.environ["PLACE"], "scoring").touch()
    return [float(image[..., 0].mean()) for image in images]
"""


@pytest.fixture
def place(tmp_path):
    world_folder(tmp_path / "model")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a red circle"}\n')
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "slow.py").write_text(SLOW)
    return tmp_path


def command(*overrides):
    return [sys.executable, "-m", "r3_rl", "train", "r.yaml", *overrides]


def environment(place):
    return {**os.environ, "PYTHONPATH": str(ROOT), "PLACE": str(place), "OMP_NUM_THREADS": "1", "R3_PROCESS_READY": "1"}


def until(there, seconds=60.0):
    end = time.monotonic() + seconds
    while not there.exists():
        assert time.monotonic() < end, f"no {there}"
        time.sleep(0.05)


def test_a_notice_of_the_scheduler_saves_and_says_how_to_go_on(place):
    process = subprocess.Popen(command(), cwd=place, env=environment(place), stdout=subprocess.PIPE, text=True)
    until(place / "scoring")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143, said
    (saved,) = numbered(place / "runs" / "r" / "checkpoints")
    assert checked(saved).step >= 1
    assert f"stopped by SIGTERM at step {checked(saved).step}; go on with" in said.splitlines()[-1]


@pytest.mark.parametrize("isolate", ["false", "true"])
def test_a_scorer_that_does_not_come_back_holds_nobody(place, isolate):
    (place / "block").touch()
    process = subprocess.Popen(
        command(f"rewards.0.isolate={isolate}"),
        cwd=place, env=environment(place), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    until(place / "blocking")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None, "the step waits for its scores"
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert time.monotonic() - begin < 15 and process.returncode == 143
    assert said.splitlines()[-1] == "r3: interrupted" and "Traceback" not in said


def test_a_terminal_that_was_closed_loses_nothing(place):
    """The run saves, although nothing can be printed any more."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(place)
        os.execve(sys.executable, command(), environment(place))
    until(place / "scoring")
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    (saved,) = numbered(place / "runs" / "r" / "checkpoints")
    assert checked(saved).step >= 1
