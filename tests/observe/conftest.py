"""A finished run, shared by the tests that only read it, and the marker of those that need a browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.observe.runs import fill_run


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: needs chromium")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill_run(tmp_path_factory.mktemp("runs"))
