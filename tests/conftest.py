"""What every test may use: a folder of its own to work in, and `r3` as a process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A verb that has run."""

    code: int
    out: str
    err: str


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def r3(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Runs a verb in this process: `r3("check", "shapes_r3")`."""
    from r3_rl.cli import run

    def call(*arguments: str) -> Finished:
        capsys.readouterr()
        code = run(arguments)
        captured = capsys.readouterr()
        return Finished(code=code, out=captured.out, err=captured.err)

    return call


@pytest.fixture
def python(tmp_path: Path) -> Callable[[str], str]:
    """Runs lines of Python in a process of their own, outside the repository, and returns what they print."""

    def call(lines: str) -> str:
        done = subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call
