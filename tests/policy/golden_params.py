"""Cases of the recorded set as test parameters; an absent file becomes one skipped case that names it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tests.policy.golden_checks import Row


def found(discover: Callable[[], list[Any]], what: str) -> list[Any]:
    """What `discover` finds in the set, or one parameter that skips with the reason."""
    try:
        cases = discover()
    except pytest.skip.Exception as reason:
        return [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=str(reason)))]
    if not cases:
        return [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=f"the set holds no {what}"))]
    return cases


def assert_fits(rows: Iterable[Row]) -> None:
    """Every array within its tolerance; the message lists those that are not."""
    wrong = [
        f"{row.name}: error {row.error:.3g}, tolerance {row.tolerance:g}, relative {row.relative:.2g}"
        for row in rows
        if not row.fits
    ]
    assert not wrong, "\n".join(wrong)
