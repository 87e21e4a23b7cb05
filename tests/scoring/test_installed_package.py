"""A stranger's package, built and installed by pip, is found like ours; a broken one beside it spoils nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "3.1"

[project.entry-points."r3_rl.scorers"]
{scorer} = "{module}:score"

[tool.setuptools]
py-modules = ["{module}"]
"""
SCORER = """
from r3_rl.scoring.base import scorer_info


@scorer_info(range=(0.0, 2.0), needs=("images", "mood"), version="7", weights_licence="MIT")
def score(images, mood, *, boost: float = 1.0, **columns):
    return [boost for _ in images]
"""


def package(folder, name, scorer, source):
    module = name.replace("-", "_")
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PROJECT.format(name=name, scorer=scorer, module=module))
    (folder / f"{module}.py").write_text(source)
    return str(folder)


@pytest.mark.processes
def test_packages_that_pip_installed(tmp_path):
    site = tmp_path / "site"
    sources = [
        package(tmp_path / "good", "mood-scores", "mood", SCORER),
        package(tmp_path / "bad", "sad-scores", "sad", "import a_module_that_nobody_has\n"),
    ]
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    pip = [sys.executable, "-m", "pip", "install", *offline, "--target", str(site), *sources]
    subprocess.run(pip, check=True, capture_output=True, cwd=tmp_path, timeout=300)
    lines = (
        "import json, sys\n"
        "from r3_rl.cli import run\n"
        "assert run(['rewards', 'ls']) == 0\n"
        "from r3_rl.scoring.registry import check_scorer, load_scorer\n"
        "heavy = {'torch', 'transformers', 'peft', 'trl', 'scipy', 'onnxruntime', 'open_clip', 'openai', 'fastapi'}\n"
        "print(json.dumps([sorted(heavy & set(sys.modules)), check_scorer('mood', {'boots': 1.0}),\n"
        "                  load_scorer('mood', {'boost': 1.5})(images=[0], mood=['merry'])]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", lines],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    mood = next(line for line in printed if line.startswith("mood "))
    assert mood.split() == ["mood", "7", "0", "to", "2", "images,", "mood", "MIT", "mood-scores", "3.1"]
    (broken,) = [line for line in printed if "fails to import" in line]
    assert broken.startswith("sad (from sad-scores 3.1) fails to import: ModuleNotFoundError")
    assert any(line.startswith("sharpness ") for line in printed)
    heavy, problems, scores = json.loads(printed[-1])
    assert heavy == [] and scores == [1.5]
    assert len(problems) == 1 and "takes no parameter 'boots'; did you mean 'boost'?" in problems[0]
