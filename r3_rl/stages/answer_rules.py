"""What an answer to a question about an image is worth, by the rule that its question names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from r3_rl.stages.vqa_words import accuracy, normalised

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def worth(answer: str, columns: Mapping[str, Any]) -> float:
    """What an answer earns, in [0, 1].

    Args:
        answer: as the policy wrote it, without its thought.
        columns: of the question: `answer`, a right answer or a list of right ones; `match`, a name in RULES (`exact`
            if there is none); `within`, how far a `number` may be off (0 if there is none).

    >>> worth("Two.", {"answer": ["two", "2"]}), worth("about 5 dogs", {"answer": 4, "match": "number", "within": 1})
    (1.0, 1.0)
    """
    wanted = columns["answer"]
    listed = [str(one) for one in (wanted if isinstance(wanted, list | tuple) else [wanted])]
    return RULES[str(columns.get("match") or "exact")](answer, listed, columns)


def _exact(answer: str, wanted: Sequence[str], columns: Mapping[str, Any]) -> float:
    """One of the right answers, whatever its case and a full stop behind it."""
    plain = answer.strip().rstrip(".").strip().casefold()
    return float(bool(plain) and any(plain == one.strip().casefold() for one in wanted))


def _yes_no(answer: str, wanted: Sequence[str], columns: Mapping[str, Any]) -> float:
    """The first word that is `yes` or `no`."""
    said = next((word for word in normalised(answer).split() if word in ("yes", "no")), "")
    return float(said in [normalised(one) for one in wanted])


def _number(answer: str, wanted: Sequence[str], columns: Mapping[str, Any]) -> float:
    """The only number in the answer, as digits or as a word up to ten, is at most `within` away from a right one."""
    said, right = set(numbers_in(answer)), [number for one in wanted for number in numbers_in(one)]
    within = float(columns.get("within") or 0)
    return float(len(said) == 1 and any(abs(number - wish) <= within for number in said for wish in right))


def _vqa(answer: str, wanted: Sequence[str], columns: Mapping[str, Any]) -> float:
    """The accuracy of the VQA challenges: as many of the people as gave this answer, three of them being enough."""
    return accuracy(answer, wanted)


Rule = Callable[[str, Sequence[str], Mapping[str, Any]], float]
RULES: Mapping[str, Rule] = {"exact": _exact, "yes_no": _yes_no, "number": _number, "vqa": _vqa}
"""(answer, right answers, columns of the question) -> what it earns."""


def numbers_in(text: str) -> list[float]:
    """Numbers in a text, as digits or as words from zero to ten.

    >>> numbers_in("two or 3.5"), numbers_in("none"), numbers_in("many")
    ([2.0, 3.5], [0.0], [])
    """
    return [float(found) for found in _NUMBER.findall(normalised(text))]
