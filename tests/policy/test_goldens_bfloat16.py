"""Weights cast to bfloat16 stay as near to the recorded float32 arrays as the reference code itself did."""

from __future__ import annotations

import pytest
import torch

from tests.policy.golden_checks import BFLOAT16, text_only, understanding
from tests.policy.golden_drawing import edit_velocity, velocity
from tests.policy.golden_set import model
from tests.policy.golden_training import packed_train


@pytest.mark.parametrize(
    "check",
    [text_only, understanding, velocity, edit_velocity, packed_train],
    ids=lambda check: check.__name__,
)
def test_bfloat16(check):
    rows = [row for row in check(model(torch.bfloat16)) if row.kind in BFLOAT16]
    assert rows
    wrong = [f"{r.name}: {r.relative:.4f}" for r in rows if not r.relative <= BFLOAT16[r.kind]]
    assert not wrong, "\n".join(wrong)
