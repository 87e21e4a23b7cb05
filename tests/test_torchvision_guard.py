"""A CPU torch beside a torchvision that was built for CUDA: the import fails alone and works behind the guard."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

# What torchvision does on import: load its operators, whatever comes of it, then register shapes for them.
PACKAGE = """
import torch
from pathlib import Path
try:
    torch.ops.load_library(str(Path(__file__).parent / "_C.so"))
except OSError:
    pass
@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return dets
"""
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
try:
    import torchvision
except RuntimeError as error:
    print("alone:", error)
from r3_rl.torchvision_guard import guard
assert guard() and guard()
import torchvision
print("guarded: imported")
"""


@pytest.mark.processes
@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built for CUDA")
def test_torchvision_built_for_cuda_can_be_imported(tmp_path: Path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(PACKAGE)
    (package / "_C.so").write_bytes(b"needs libcudart")
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["alone: operator torchvision::nms does not exist", "guarded: imported"], (
        done.stderr
    )


WATCHED = """
import sys
sys.path.insert(0, sys.argv[1])
import r3_rl
print("torch" in sys.modules)
from importlib.util import find_spec
assert find_spec("torchvision") is not None
import torchvision
print("imported", [type(finder).__name__ for finder in sys.meta_path].count("Watch"))
"""


@pytest.mark.processes
@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built for CUDA")
def test_importing_r3_rl_is_enough_and_loads_no_torch(tmp_path: Path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(PACKAGE)
    (package / "_C.so").write_bytes(b"needs libcudart")
    done = subprocess.run([sys.executable, "-c", WATCHED, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["False", "imported 0"], done.stderr


ASKED = """
import sys
sys.path.insert(0, sys.argv[1])
from r3_rl.scoring.registry import check_scorer
print(check_scorer("geneval"), "torch" in sys.modules)
import torchvision
print("guarded", "torch" in sys.modules)
"""


@pytest.mark.processes
@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built for CUDA")
def test_asking_whether_it_is_installed_loads_no_torch_and_leaves_the_watch(tmp_path: Path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(PACKAGE)
    (package / "_C.so").write_bytes(b"needs libcudart")
    done = subprocess.run([sys.executable, "-c", ASKED, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[] False", "guarded True"], done.stderr


@pytest.mark.processes
def test_nothing_is_done_without_torchvision(tmp_path: Path):
    code = (
        "import sys; sys.modules['torchvision'] = None; from r3_rl.torchvision_guard import guard; assert not guard()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
