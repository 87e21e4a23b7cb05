"""Recorded arrays: from the folder R3_GOLDENS where set, else from tests/golden/bagel."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

Arrays = dict[str, torch.Tensor]


@pytest.fixture
def golden() -> Callable[[str], Arrays]:
    """Load all arrays of one golden file as tensors, or skip where the set has no such file."""
    folder = Path(os.environ.get("R3_GOLDENS") or Path(__file__).parents[1] / "golden" / "bagel")

    def load(name: str) -> Arrays:
        path = folder / name
        if not path.exists():
            pytest.skip(f"the golden set {folder} has no {name}")
        with np.load(path) as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays.files}

    return load
