"""The house itself: packaging, import contracts, the public names, the files that everybody relies on."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import r3_rl

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
MAPPED = {"r3_rl.rewards": "rewards", "r3_rl.recipes": "recipes"}


def test_every_package_is_listed_so_that_it_ships():
    found = {
        ".".join(init.parent.relative_to(REPOSITORY).parts) for init in (REPOSITORY / "r3_rl").rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found | set(MAPPED)
    assert PROJECT["tool"]["setuptools"]["package-dir"] == MAPPED


def test_version_is_one():
    assert PROJECT["project"]["version"] == r3_rl.__version__


def test_public_names_exist():
    for name in r3_rl.__all__:
        assert getattr(r3_rl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        r3_rl.nothing  # noqa: B018


@pytest.mark.processes
def test_importing_the_package_loads_nothing_heavy(python):
    seen = python(
        "import sys, r3_rl, r3_rl.types, r3_rl.errors; print('torch' in sys.modules, 'pydantic' in sys.modules)"
    )
    assert seen.split() == ["False", "False"]


def test_every_extra_that_the_doctor_knows_is_in_the_package_metadata():
    from r3_rl.doctor import PACKAGES

    extras = PROJECT["project"]["optional-dependencies"]
    assert set(PACKAGES) == set(extras) - {"dev"}
    for extra, names in PACKAGES.items():
        required = {re.split(r"[\[<>=]", line)[0].lower() for line in extras[extra]}
        assert {name.lower() for name in names} <= required, extra


def test_every_package_of_an_extra_is_used():
    """Imported, or named as a text where it is imported by its name (trackers)."""
    from r3_rl.doctor import PACKAGES

    reports = {REPOSITORY / "r3_rl" / "doctor.py", REPOSITORY / "r3_rl" / "observe" / "environment.py"}
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("r3_rl", "rewards")
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        if path not in reports
    )
    for extra, names in PACKAGES.items():
        for name in names:
            module = name.removesuffix("_torch")
            assert re.search(rf'\b(import|from) {module}\b|"{module}"', code), f"{extra}: nothing uses {name}"


def test_pinned_versions_lie_within_the_ranges_of_the_package():
    from packaging.requirements import Requirement

    lines = (REPOSITORY / "constraints-cpu.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    ranges = [PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values()]
    for requirement in map(Requirement, itertools.chain(*ranges)):
        if requirement.name in pins:
            assert requirement.specifier.contains(pins[requirement.name]), requirement
    core = [Requirement(line).name for line in PROJECT["project"]["dependencies"]]
    assert set(core) <= set(pins), "what everybody installs is pinned for the tests"


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("copied")
    for folder in ("r3_rl", "rewards"):
        shutil.copytree(REPOSITORY / folder, place / folder, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    shutil.copy(REPOSITORY / "pyproject.toml", place)
    return place


@pytest.mark.processes
@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("r3_rl/policy/base.py", "import r3_rl.scoring.base", "A policy never sees scores"),
        ("r3_rl/types.py", "import r3_rl.flow.schedule", "Rooms are entered from above"),
        ("r3_rl/recipe/base.py", "import r3_rl.types", "The recipe's schema knows errors"),
        ("r3_rl/algorithm/gain.py", "import rewards.length", "The toolkit never imports its built-in scorers"),
        ("rewards/length.py", "import r3_rl.policy.base", "A built-in scorer sees what a stranger's sees"),
        ("r3_rl/flow/sde.py", "import r3_rl.worlds.shapes.scene", "Credit and flow are plain functions"),
        ("r3_rl/assemble.py", "import r3_rl.policy.bagel.config", "No room names a backbone"),
        ("r3_rl/evaluate/base.py", "import r3_rl.worlds.shapes.data", "No room names a world"),
        ("r3_rl/worlds/sets.py", "import r3_rl.scoring.base", "A world knows prompts, texts and images"),
        ("r3_rl/algorithm/gain.py", "import r3_rl.rewards.length", "r3_rl.rewards"),
    ],
)
def test_planted_wrong_import_is_caught(copied, file, line, contract):
    path = copied / file
    before = path.read_text()
    path.write_text(f"{before}\n{line}\n")
    try:
        said = checked(copied)
    finally:
        path.write_text(before)
    assert contract in said


@pytest.mark.processes
def test_import_contracts_hold(copied):
    assert checked(copied) == ""


def checked(place: Path) -> str:
    """What the two import checks of `make check` complain about; empty when all is well."""
    environment = {**os.environ, "PYTHONPATH": str(place), "COLUMNS": "500", "NO_COLOR": "1"}
    tools = Path(sys.executable).parent
    said = ""
    for command in (
        ["lint-imports", "--no-cache"],
        ["ruff", "check", "--no-cache", "--select", "TID251", "."],
    ):
        done = subprocess.run(
            [str(tools / command[0]), *command[1:]], cwd=place, env=environment, capture_output=True, text=True
        )
        said += "" if done.returncode == 0 else done.stdout + done.stderr
    return said


@pytest.mark.processes
def test_wheel_holds_recipes_and_scorers_and_works_away_from_the_repository(tmp_path):
    source = tmp_path / "source"
    hidden = shutil.ignore_patterns("__pycache__")
    for folder in ("r3_rl", "rewards", "recipes"):
        shutil.copytree(REPOSITORY / folder, source / folder, ignore=hidden)
    for file in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(REPOSITORY / file, source)
    build = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 20e6
    shutil.unpack_archive(wheel, tmp_path / "installed", "zip")
    (tmp_path / "empty").mkdir()
    lines = (
        "from r3_rl.cli import run; from r3_rl.recipe_io import shipped_folder\n"
        "assert run(['check', 'shapes_r3']) == 0; print(shipped_folder())"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    command = [sys.executable, "-c", lines]
    done = subprocess.run(command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == [str(tmp_path / "installed" / "r3_rl" / "recipes")], done.stderr
    weights = REPOSITORY / "r3_rl" / "worlds" / "shapes" / "weights"
    for file in weights.glob("*"):
        assert (tmp_path / "installed" / file.relative_to(REPOSITORY)).is_file(), file.name


def test_ci_runs_the_tests_and_the_checks():
    script = REPOSITORY / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "for target in test check" in script.read_text()


def test_licence_is_whole():
    text = (REPOSITORY / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"
