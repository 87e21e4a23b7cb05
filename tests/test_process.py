"""The process before torch: restarted once with the allocator's settings, threads set, the user's values kept."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib

import pytest

from r3_rl.doctor import PACKAGES, examine, matmul_gflops
from r3_rl.process import KEEPING, MARKER, physical_cores, prepare_process
from tests.conftest import REPOSITORY

SCRIPT = """
import os, sys
from r3_rl.process import KEEPING, prepare_process
print("started", sys.argv[1:], flush=True)
prepare_process({threads})
print(os.environ["OMP_NUM_THREADS"], os.environ["OPENBLAS_NUM_THREADS"], *(os.environ.get(name) for name in KEEPING))
"""
glibc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the settings are glibc's")


def start(threads: int | None = None, **changed: str) -> list[str]:
    names = (MARKER, "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", *KEEPING)
    environment = {name: value for name, value in os.environ.items() if name not in names} | changed
    command = [sys.executable, "-c", SCRIPT.format(threads=threads), "a b"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


@glibc
@pytest.mark.processes
def test_process_restarts_once_with_its_arguments():
    first, second, last = start()
    assert first == second == "started ['a b']"
    assert last.split() == [str(physical_cores()), "1", *KEEPING.values()]


@glibc
@pytest.mark.processes
def test_values_of_the_user_are_kept():
    *started, last = start(None, OMP_NUM_THREADS="3", OPENBLAS_NUM_THREADS="2", MALLOC_TOP_PAD_="77")
    assert len(started) == 2
    assert last.split()[:2] == ["3", "2"]
    assert last.split()[-1] == "77"


@pytest.mark.processes
def test_nothing_is_restarted_where_all_is_set():
    started, last = start(5, OMP_NUM_THREADS="3", **KEEPING)
    assert started == "started ['a b']"
    assert last.split()[0] == "5", "a recipe's own number of threads comes first"


def test_too_late_is_our_own_mistake():
    import torch  # noqa: F401

    with pytest.raises(AssertionError, match="before torch"):
        prepare_process()


def test_doctor_names_versions_speed_and_no_person_or_place():
    findings = list(examine())
    report = "\n".join(f"{finding.name} {finding.value} {finding.advice}" for finding in findings)
    assert {"r3-rl", "python", "torch", "matrix products", "disk", "extra train"} <= {
        finding.name for finding in findings
    }
    for secret in (os.path.expanduser("~"), os.getcwd(), os.uname().nodename, sys.prefix):
        assert len(secret) < 3 or secret not in report


OF_OTHERS = {"ninja": "DeepSpeed builds its operators with it", "torch-fidelity": "torchmetrics' FID runs on it"}
"""What an extra installs for another package of it."""


def test_doctor_looks_for_everything_that_an_extra_installs():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    looked_for = {name for names in PACKAGES.values() for name in names}
    for extra in PACKAGES:
        wanted = {re.split(r"[\[<>=]", line)[0] for line in project["optional-dependencies"][extra]}
        wanted -= set(OF_OTHERS)
        assert wanted <= (set(PACKAGES[extra]) if extra == "train" else looked_for), extra


def test_matrix_product_speed_is_measured():
    assert matmul_gflops("float32", seconds=0.01, size=256) > 0.1
