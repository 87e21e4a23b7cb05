"""Recorded advantages and losses: from the folder R3_GOLDENS where set, else from tests/golden/bagel."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def recorded() -> dict[str, Any]:
    """Load 11_advantages.json, or skip where the set has none."""
    folder = Path(os.environ.get("R3_GOLDENS") or Path(__file__).parents[1] / "golden" / "bagel")
    path = folder / "11_advantages.json"
    if not path.exists():
        pytest.skip(f"the golden set {folder} has no {path.name}")
    return json.loads(path.read_text())
