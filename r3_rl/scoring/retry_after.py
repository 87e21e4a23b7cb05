"""The header `Retry-After`, by which a server says when to come again."""

from __future__ import annotations

import math
import time
from email.utils import parsedate_to_datetime

LONGEST_S = 1e7
"""Four months: what is longer was not meant."""


def retry_after_s(text: str) -> float | None:
    """Read seconds or a date as seconds from now.

    Args:
        text: the header's value; empty if there is none.

    Returns:
        0 or more; None if it is absent or makes no sense. A date that has passed says nothing: with a clock that is
        behind, it would be "now" for ever.

    >>> retry_after_s("2.5"), retry_after_s("-1"), retry_after_s("soon")
    (2.5, None, None)
    """
    try:
        wait_s = float(text)
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(text).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError, IndexError):
            return None
    return wait_s if math.isfinite(wait_s) and 0 <= wait_s < LONGEST_S else None
