"""What a line of a published prompt file must hold: one sentence for each fault."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_MOST_OBJECTS = 100


def geneval_problems(row: Mapping[str, Any]) -> Iterator[str]:
    """Faults of a GenEval or GenEval++ line; its prompt is checked elsewhere.

    >>> list(geneval_problems({"tag": "counting", "include": [{"class": "cup", "count": 0}]}))
    ['include[0].count: 0 is no number of objects; write 1 or more']
    """
    yield from _text_problems(row, "tag")
    if "include" not in row:
        yield "no column 'include', the list of objects that the image must show"
    elif not isinstance(row["include"], list) or not row["include"]:
        yield f"include: {_shown(row['include'])} is no list of objects"
    for name in ("include", "exclude"):
        items = row.get(name, [])
        if name == "exclude" and not isinstance(items, list):
            yield f"exclude: {_shown(items)} is no list of objects"
        for index, item in enumerate(items if isinstance(items, list) else ()):
            yield from (f"{name}[{index}]{fault}" for fault in _object_problems(item, len(items)))


def count_problems(row: Mapping[str, Any]) -> Iterator[str]:
    """More objects than any image shows, in a row of any kind: what scorers build for them grows with their square.

    >>> list(count_problems({"include": [{"class": "cup", "count": 10**9}]}))
    ['include: 1000000000 objects are more than an image shows; at most 100']
    """
    for name in ("include", "exclude"):
        items = row.get(name)
        total = sum(_count_of(item) for item in items) if isinstance(items, list) else 0
        if total > _MOST_OBJECTS:
            yield f"{name}: {total} objects are more than an image shows; at most {_MOST_OBJECTS}"


def _count_of(item: Any) -> int:
    count = item.get("count", 1) if isinstance(item, dict) else 1
    return count if type(count) is int and count > 0 else 1


def tiif_problems(row: Mapping[str, Any]) -> Iterator[str]:
    """Faults of a TIIF line; its description is checked elsewhere.

    >>> list(tiif_problems({"type": "action", "yn_question_list": ["Is it red?"], "yn_answer_list": []}))
    ['1 questions in yn_question_list and 0 answers in yn_answer_list']
    """
    yield from _text_problems(row, "type")
    lists = []
    for name in ("yn_question_list", "yn_answer_list"):
        if name not in row:
            yield f"no column {name!r}"
        elif not isinstance(row[name], list) or not all(isinstance(text, str) for text in row[name]):
            yield f"{name}: {_shown(row[name])} is no list of texts"
        else:
            lists.append(row[name])
    if len(lists) == 2:
        questions, answers = lists
        if len(questions) != len(answers):
            yield f"{len(questions)} questions in yn_question_list and {len(answers)} answers in yn_answer_list"
        for index, answer in enumerate(answers):
            if answer.strip().lower() not in ("yes", "no"):
                yield f"yn_answer_list[{index}]: {_shown(answer)} is neither yes nor no"


def _object_problems(item: Any, count: int) -> Iterator[str]:
    if not isinstance(item, dict):
        yield f': {_shown(item)} is no object; write {{"class": ..., "count": ...}}'
        return
    if not isinstance(item.get("class"), str):
        yield ".class: missing or no text"
    number = item.get("count")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        yield f".count: {_shown(number)} is no number of objects; write 1 or more"
    yield from (f".{name}: {_shown(item[name])} is no text" for name in _not_texts(item))
    if "position" in item and not _is_position(item["position"], count):
        yield f'.position: {_shown(item["position"])} is no [relation, index of another object], such as ["above", 0]'


def _not_texts(item: Mapping[str, Any]) -> Iterator[str]:
    return (name for name in ("color", "region", "size") if name in item and not isinstance(item[name], str))


def _is_position(value: Any, count: int) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    relation, index = value
    return isinstance(relation, str) and type(index) is int and 0 <= index < count


def _text_problems(row: Mapping[str, Any], name: str) -> Iterator[str]:
    if name not in row:
        yield f"no column {name!r}"
    elif not isinstance(row[name], str):
        yield f"{name}: {_shown(row[name])} is no text"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
