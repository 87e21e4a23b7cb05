"""Checking what a scorer answered before anything learns from it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from r3_rl.errors import one_line

_TOLERANCE = 1e-6  # float32 cosines reach 1.0000001
LARGEST = 1e36
"""Beyond it a score, or its share in a total, is missing: rewards are float32, and sums of scores must not overflow."""


@dataclass(frozen=True, kw_only=True)
class CheckedAnswer:
    """Scores that are finite and in range, and why some are missing."""

    scores: tuple[float | None, ...]
    causes: Mapping[int, str] = field(default_factory=dict)
    """Cause by index, for each score that is None."""


class BrokenContract(Exception):
    """An answer that no scorer may give; `index` is the first sample it shows on, None when it is the whole answer."""

    def __init__(self, cause: str, *, index: int | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.index = index


def check_answer(answer: Any, *, count: int, range: tuple[float, float] | None) -> CheckedAnswer:
    """Return `count` scores; a None, NaN, infinite or huge one (above `LARGEST`) is missing with its cause.

    An answer is a list, a tuple or a one-dimensional array or tensor; True and False are 1 and 0. A score past the
    declared `range` by rounding only is put on its end. Raises `BrokenContract` for a wrong count, type or range.

    >>> check_answer([1, None, float("nan")], count=3, range=(0.0, 1.0)).scores
    (1.0, None, None)
    """
    values = _as_list(answer)
    if len(values) != count:
        raise BrokenContract(f"it returned {len(values)} scores for {count} samples")
    scores: list[float | None] = []
    causes: dict[int, str] = {}
    for index, value in enumerate(values):
        score = _as_number(value, index)
        if score is None or not abs(score) <= LARGEST:
            causes[index] = "it returned None" if score is None else f"it returned {score:g}"
            scores.append(None)
        else:
            scores.append(_in_range(score, range, index))
    return CheckedAnswer(scores=tuple(scores), causes=causes)


def check_words(name: str, values: Any, count: int) -> Sequence[Any]:
    """Return what a scorer gave to `log_extra`: one value for each sample."""
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != count:
        raise BrokenContract(f"log_extra({name!r}, ...) takes a list with one value for each of {count} samples")
    return values


def _as_list(answer: Any) -> list[Any]:
    if hasattr(answer, "tolist"):
        answer = answer.tolist()
    if isinstance(answer, str | bytes) or not isinstance(answer, Sequence):
        raise BrokenContract(f"it returned {_kind(answer)} instead of a list with one number for each sample")
    return list(answer)


def _as_number(value: Any, index: int) -> float | None:
    if value is None:
        return None
    if not isinstance(value, numbers.Real) and getattr(value, "shape", None) == ():
        value = value.item()  # a number of numpy's or a tensor of no dimensions
    if not isinstance(value, numbers.Real):
        raise BrokenContract(f"it returned {_kind(value)} where a number or None belongs", index=index)
    try:
        return float(value)
    except OverflowError:  # a whole number of any length
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]
    except Exception as error:
        raise BrokenContract(f"it returned {_kind(value)} where a number or None belongs", index=index) from error


def _in_range(score: float, range: tuple[float, float] | None, index: int) -> float:
    if range is None:
        return score
    low, high = range
    slack = _TOLERANCE * (high - low)
    if not low - slack <= score <= high + slack:
        raise BrokenContract(f"it returned {score:g}, outside its declared range {low:g} to {high:g}", index=index)
    return min(max(score, low), high)


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    try:
        text = one_line(repr(value))
    except Exception:  # its own `__repr__` fails
        return type(value).__name__
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
