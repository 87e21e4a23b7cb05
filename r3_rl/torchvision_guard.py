"""Lets torchvision be imported beside a CPU build of torch.

torchvision's usual wheel is built for CUDA. Beside a CPU build of torch its compiled operators do not load, and its
import then fails on `operator torchvision::nms does not exist`, and with it much of transformers and all of open_clip.
Naming the two operators before the import is enough; nothing here calls them.

It has to happen before whichever import comes first, and that may be transformers' in any room of ours, or a user's. So
importing `r3_rl` leaves a watch: the guard runs when somebody asks for torchvision, and costs nothing until then.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# A library takes its definitions back when it is collected.
_kept: list[Any] = []


def guard() -> bool:
    """Name torchvision's operators where its own ones cannot load; return whether they are named.

    Does nothing when torchvision is missing or already imported, when torch is built for an accelerator, or when
    torchvision's own operators load. Loads torch.
    """
    if _kept:
        return True
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Watch)]  # it would call us again
    spec = None if "torchvision" in sys.modules else find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    import torch

    if torch.version.cuda is not None or getattr(torch.version, "hip", None) is not None:
        return False
    if _own_operators_load(Path(spec.origin).parent):
        return False
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _kept.append(library)
    return True


class Watch(MetaPathFinder):
    """Runs the guard when torchvision is first looked for, and finds nothing itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return None, which leaves the module to the finders behind."""
        if fullname == "torchvision":
            guard()
        return None


def watch() -> None:
    """Have the guard run before torchvision is imported, by whomever; loads nothing."""
    if "torchvision" not in sys.modules and not any(isinstance(finder, Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, Watch())


def is_installed(package: str) -> bool:
    """Whether a top-level package can be found. Loads nothing, where `find_spec` would have the guard load torch.

    >>> is_installed("json"), is_installed("no_such_package")
    (True, False)
    """
    if package != "torchvision" or package in sys.modules:
        return find_spec(package) is not None
    finders = (finder for finder in sys.meta_path if not isinstance(finder, Watch))
    return any(finder.find_spec(package, None) is not None for finder in finders)


def _own_operators_load(folder: Path) -> bool:
    import torch

    files = [file for file in folder.glob("_C*") if file.suffix in (".so", ".pyd", ".dylib")]
    try:
        for file in files:
            torch.ops.load_library(str(file))
    except OSError:
        return False
    return bool(files)
