"""Two processes give what one gives, and one that is killed from outside leaves what the next one needs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.processes, pytest.mark.slow]

WORDS = ("eval", "shipped", "--bench", "shapes", "--limit", "1", "--rounds", "0,1", "--out")
TABLES = ("table.json", "table.md", "samples.jsonl", "index.html")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "out"
    finish(start(folder))  # with as many threads as the others: another number rounds otherwise
    return folder


def start(folder: Path, *launcher: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    words = [sys.executable, "-m", *launcher, "r3_rl", *WORDS, str(folder)]
    return subprocess.Popen(words, cwd=folder.parent, env=environment, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def assert_same(folder: Path, alone: Path) -> None:
    for name in TABLES:
        assert (folder / name).read_bytes() == (alone / name).read_bytes(), name


def test_two_processes_share_the_batches_and_give_the_table_of_one(alone, tmp_path):
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")
    said = finish(start(tmp_path / "two", *launcher))
    assert_same(tmp_path / "two", alone)
    assert said.count("index.html") == 1, "the first process speaks for both"
    assert "left" in said and "sample" in said


def test_a_killed_evaluation_goes_on_to_the_same_table(alone, tmp_path):
    folder = tmp_path / "killed"
    process = start(folder)
    deadline = time.monotonic() + 200
    while not list(folder.glob("parts/*/*/*/*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = {path: path.stat().st_mtime_ns for path in folder.glob("parts/*/*/*/*.jsonl")}
    assert left and not (folder / "table.json").exists()
    half = folder / "parts" / "shapes.drawing" / "base" / ".x.jsonl.partial"
    half.parent.mkdir(parents=True, exist_ok=True)
    half.write_text('{"bench": "sha')  # as a kill in the middle of a write leaves it
    finish(start(folder))
    assert_same(folder, alone)
    assert all(path.stat().st_mtime_ns == when for path, when in left.items()), "finished samples are kept"
