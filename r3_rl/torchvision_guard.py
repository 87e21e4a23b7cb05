"""Lets torchvision be imported beside a CPU build of torch.

torchvision's usual wheel is built for CUDA. Beside a CPU build of torch its compiled operators do not load, and its
import then fails on `operator torchvision::nms does not exist`, and with it much of transformers and all of open_clip.
Naming the two operators before the import is enough; nothing here calls them.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
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


def _own_operators_load(folder: Path) -> bool:
    import torch

    files = [file for file in folder.glob("_C*") if file.suffix in (".so", ".pyd", ".dylib")]
    try:
        for file in files:
            torch.ops.load_library(str(file))
    except OSError:
        return False
    return bool(files)
