"""Text, cache, greedy decoding and looking at an image against the recorded set."""

from __future__ import annotations

import pytest

from tests.policy import golden_checks as checks
from tests.policy import golden_policy
from tests.policy.golden_params import assert_fits
from tests.policy.golden_set import model


def test_text():
    assert_fits(checks.text_only(model()))


def test_understanding():
    assert_fits(checks.understanding(model()))


@pytest.mark.parametrize("name", ["01_text", "02_understanding"])
def test_the_writer_decodes_the_same_text(name):
    assert_fits(golden_policy.written(model(), name))
