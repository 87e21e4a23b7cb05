"""Reading what a judge wrote, without ever guessing: what does not read in exactly one way is None."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

# Marks around what a reasoning model thinks.
_NAMES = r"(?:seed:)?(?:think|thinking|thoughts?|reason|reasoning)"
_MARKS = (
    (rf"<{_NAMES}>", rf"</{_NAMES}>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    (r"◁think▷", r"◁/think▷"),
    (r"<\|channel\|>analysis<\|message\|>", r"<\|channel\|>final<\|message\|>"),
)
# A chat template may put the opening mark into the prompt, so that the reply holds the closing one only.
_THOUGHTS = tuple(
    re.compile(rf"\A({opens})?(?:(?!{opens}).)*?{closes}\s*", re.DOTALL | re.IGNORECASE) for opens, closes in _MARKS
)
# What some models put around an answer that comes after their thoughts.
_BOXES = tuple(
    re.compile(rf"\A(?:(?!{opens}).)*{opens}((?:(?!{opens}).)*){closes}\s*\Z", re.DOTALL | re.IGNORECASE)
    for opens, closes in (
        (r"<answer>", r"</answer>"),
        (r"<\|begin_of_box\|>", r"<\|end_of_box\|>"),
        (r"\\boxed\{", r"\}"),
    )
)
_INVISIBLE = re.compile(r"[\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
_START_MARK = re.compile(r"(?:<s>|<bos>|<\|(?:im_start|start)\|>\s*assistant\b|<\|assistant\|>)\s*")
_END_MARK = re.compile(
    r"(?:<\|(?:im_end|endoftext|end_of_text|end[▁_]of[▁_]sentence|eot_id|eom_id|end|return|user|observation)\|>"
    r"|<end_of_turn>|<eos>|</s>|\[/INST\])\Z"
)
_FENCE = re.compile(r"(?<![`~])(`{3,}|~{3,})(?![`~])[ \t]*\w*[ \t]*\n?(.*?)\1", re.DOTALL)
# The word, and then the end or a mark: "no doubt about it" is no "no".
_YES_NO = re.compile(r"(yes|no)[*_`\"']*(?:\s*(?:[.,:;!(–—。、]|-(?=\s))\s*(.*))?", re.IGNORECASE | re.DOTALL)
_ANSWER = re.compile(r"\A[*_]*(?:(?:final|my)\s+)?answer[*_]*\s*:", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:[-*]\s+)?(?:(?:q|a|question|answer)\s*)?\(?(\d{1,3})\s*[.):、]\s*(.*)", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
_SHOWN = 80


def shown(text: str, length: int = _SHOWN) -> str:
    """Return the beginning of a text in quotes and on one line, for messages.

    >>> shown("a\\nb"), shown("abcdef", 4)
    ("'a b'", "'abcd...'")
    """
    line = " ".join(text[: 4 * length].split())
    return repr(line if len(line) <= length and len(text) <= 4 * length else line[:length] + "...")


def read_yes_no(text: str) -> bool | None:
    """Read "yes" or "no", alone or before a mark and a reason; a reason that starts with the other word is None.

    >>> read_yes_no("**Yes.**"), read_yes_no("no, the dog is red"), read_yes_no("no doubt: yes"), read_yes_no("No, yes")
    (True, False, None, None)
    """
    found = _YES_NO.fullmatch(_ANSWER.sub("", _spoken(text)).strip(" \t\n\"'“”‘’*_`"))
    if found is None:
        return None
    reason = re.match(r"\W*(yes|no)\b", found[2] or "", re.IGNORECASE)
    if reason is not None and reason[1].casefold() != found[1].casefold():
        return None
    return found[1].casefold() == "yes"


def read_lines(text: str, count: int) -> list[bool] | None:
    """Read one yes or no a line; numbers before them are optional and must then count from 1.

    >>> read_lines("1. yes\\n2) No, it is blue", 2), read_lines("yes", 2), read_lines("2. yes\\n1. no", 2)
    ([True, False], None, None)
    """
    spoken = _spoken(text)
    whole = _FENCE.fullmatch(spoken)
    lines = [line.strip() for line in (whole[2] if whole else spoken).splitlines() if line.strip()]
    if len(lines) != count:
        return None
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    if any(numbered):
        if [found and int(found[1]) for found in numbered] != list(range(1, count + 1)):
            return None
        lines = [found[2] for found in numbered if found]
    return _all_or_none([read_yes_no(line) for line in lines])


def read_json(text: str) -> Any:
    """Read a JSON value that is the whole text, or stands in its only ``` block; None for anything else.

    A name that stands twice in one object, NaN and Infinity are refused, as neither says one thing.

    >>> read_json('Here it is:\\n```json\\n["yes"]\\n```')
    ['yes']
    >>> read_json('["yes"] or ["no"]'), read_json('{"a": 1, "a": 2}')
    (None, None)
    """
    text = _spoken(text)
    blocks = _FENCE.findall(text)
    if len(blocks) > 1:
        return None
    try:
        return json.loads(blocks[0][1] if blocks else text, parse_constant=_refuse, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return None


def read_json_answers(text: str, count: int) -> list[bool] | None:
    """Read `count` answers from JSON: a list, or an object with the names "1" to "count".

    An answer is "yes", "no", true, false, or an object with such an `answer`; where an object has an `item`, it must be
    the number of its place.

    >>> read_json_answers('["yes", false]', 2)
    [True, False]
    >>> read_json_answers('[{"item": 1, "seen": "two cats", "answer": "no"}]', 1)
    [False]
    >>> read_json_answers('{"2": "no", "1": "yes"}', 2), read_json_answers('["yes", "unclear"]', 2)
    ([True, False], None)
    """
    value = read_json(text)
    if isinstance(value, dict) and set(value) == {str(number) for number in range(1, count + 1)}:
        value = [value[str(number)] for number in range(1, count + 1)]
    if not isinstance(value, list) or len(value) != count:
        return None
    return _all_or_none([_json_answer(answer, number) for number, answer in enumerate(value, start=1)])


def read_score(text: str, *, low: float, high: float) -> float | None:
    """Read a score on a stated scale: a bare number, "Score: 7", "7/10" with `high` below the line, or {"score": 7}.

    Returns the score as it stands, `low` to `high`; None for a number outside, two numbers, or another scale.

    >>> [read_score(text, low=0, high=10) for text in ("7", "Score: 7.5", "7/10", '{"score": 7}')]
    [7.0, 7.5, 7.0, 7.0]
    >>> [read_score(text, low=0, high=10) for text in ("11", "7/100", "between 6 and 7", '{"score": "7"}')]
    [None, None, None, None]
    """
    value = read_json(text)
    if isinstance(value, dict):
        value = value.get("score")
    elif value is None:
        line = re.sub(r"\A(?:score|rating)\s*[:=]\s*", "", _spoken(text).strip(" \t\n*_`."), flags=re.IGNORECASE)
        parts = [part.strip(" *") for part in line.split("/")]
        if len(parts) > 2 or not all(map(_NUMBER.fullmatch, parts)) or (parts[1:] and float(parts[1]) != high):
            return None
        value = float(parts[0])
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        return None
    return float(value)


def _json_answer(answer: Any, number: int) -> bool | None:
    if isinstance(answer, dict):
        item = answer.get("item", number)
        answer = answer.get("answer") if str(item) == str(number) else None
    if isinstance(answer, bool):
        return answer
    return read_yes_no(answer) if isinstance(answer, str) else None


def _spoken(text: str) -> str:
    """Leave out what a server should have: a reasoning model's thoughts, marks around its answer, invisible letters;
    full-width letters and marks become plain ones."""
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).replace("\r\n", "\n").strip()
    while start := _START_MARK.match(text):
        text = text[start.end() :]
    for thoughts in _THOUGHTS:
        first = True
        while (found := thoughts.match(text)) and (first or found[1]):
            text, first = text[found.end() :], False
    while end := _END_MARK.search(text):
        text = text[: end.start()].rstrip()
    for box in _BOXES:
        if found := box.match(text):
            text = found[1].strip()
    return text


def _all_or_none(answers: list[bool | None]) -> list[bool] | None:
    whole = [answer for answer in answers if answer is not None]
    return whole if len(whole) == len(answers) else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name stands twice")
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
