"""Schedules, embeddings, position tables, the resize rule and the autoencoder against the recorded set."""

from __future__ import annotations

from tests.policy import golden_checks as checks
from tests.policy.golden_params import assert_fits
from tests.policy.golden_set import model


def test_primitives():
    assert_fits(checks.primitives(model()))


def test_autoencoder():
    assert_fits(checks.vae())
