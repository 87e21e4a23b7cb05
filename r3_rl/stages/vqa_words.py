"""The accuracy of VQA challenges: how answers are normalised and compared with those of ten people.

Written from the rules on visualqa.org/evaluation.html: lower case, number words as digits, no articles, apostrophes in
contractions that lack them, punctuation removed (a space where it joined two words; commas and periods in numbers stay
or go as the rules say).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

ARTICLES = frozenset({"a", "an", "the"})
_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(number) for number, word in enumerate(_COUNTED)} | {"none": "0"}
PUNCTUATION = tuple(";:/'[]\"()=+\\_><@`,?")
"""What is removed; periods have a rule of their own, and hyphens, `!`, `%` and `$` stay."""
_IN_A_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")

_ENDINGS = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "'ve": "could might must not should they we what where who would you",
    "'s": "he how somebody someone that there what when where who why",
    "'d": "he how it someone something there they where who you",
    "'ll": "how it somebody someone something they what who why you",
    "'re": "there they what why you",
}
_OTHERS = {"maam": "ma'am", "oclock": "o'clock", "twas": "'twas", "yall": "y'all"}


@cache
def contractions() -> dict[str, str]:
    """Return contractions by how they are written without their apostrophe, where that is not another word.

    >>> [contractions().get(word) for word in ("dont", "theyre", "were", "oclock")]
    ["don't", "they're", None, "o'clock"]
    """
    found = dict(_OTHERS)
    for ending, stems in _ENDINGS.items():
        found |= {stem + ending.replace("'", ""): stem + ending for stem in stems.split()}
    return found


def without_punctuation(text: str) -> str:
    """Remove punctuation: to nothing if it is next to a space, or in a text with a number such as `1,000`; else to a
    space. A period goes unless a digit follows.

    >>> [without_punctuation(text) for text in ("red/white", "1,000", "no, red", "3.5 m.")]
    ['red white', '1000', 'no red', '3.5 m']
    """
    found = text
    in_a_number = _IN_A_NUMBER.search(text) is not None
    for mark in PUNCTUATION:
        beside_a_space = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if beside_a_space or in_a_number else " ")
    return _PERIOD.sub("", found)


def normalised(text: str) -> str:
    """Return an answer in the form in which answers are compared.

    >>> [normalised(text) for text in ("The Two dogs.", "dont know", "An umbrella", "None")]
    ['2 dogs', "don't know", 'umbrella', '0']
    """
    words = without_punctuation(" ".join(text.split())).lower().split()
    numbers = [NUMBERS.get(word, word) for word in words]
    return " ".join(contractions().get(word, word) for word in numbers if word not in ARTICLES)


def accuracy(answer: str, humans: Sequence[str]) -> float:
    """Return the accuracy of an answer.

    acc = mean over i of min(1, |{j != i : humans_j = answer}| / 3): each person is left out in turn, so that people's
    own agreement is measured the same way.

    Args:
        answer: as the model wrote it.
        humans: [n] what people answered, n >= 1. As published they are lower case with digits; their punctuation is
            removed only if they differ, as the official tool does.

    >>> accuracy("Two", ["2"] * 3 + ["3"] * 7)
    0.9
    """
    given = [without_punctuation(human) for human in humans] if len(set(humans)) > 1 else list(humans)
    wanted = normalised(answer)
    matches = [human == wanted for human in given]
    return sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(given)
