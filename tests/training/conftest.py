"""Trainer collects garbage after every run; what was imported need not be looked through each time."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(scope="package", autouse=True)
def _frozen_imports():
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
