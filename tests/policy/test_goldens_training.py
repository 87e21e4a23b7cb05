"""Packed training, its gradients and the supervised losses against the recorded set."""

from __future__ import annotations

from tests.policy import golden_training as checks
from tests.policy.golden_params import assert_fits
from tests.policy.golden_set import model


def test_packed_training_and_every_gradient():
    assert_fits(checks.packed_train(model()))


def test_supervised_losses():
    assert_fits(checks.sft_loss(model()))
