"""Prompts typed by people, read as what they ask for, so that the inspector can judge what was drawn for them."""

from __future__ import annotations

import re

from r3_rl.types import Prompt
from r3_rl.worlds.shapes.prompts import NUMBERS, RELATIONS, Group, make_prompt, plural
from r3_rl.worlds.shapes.scene import COLORS, SHAPES

_ARTICLES = ("a", "an", "the")
_NOUNS = {**{shape: shape for shape in SHAPES}, **{plural(shape): shape for shape in SHAPES}}
_RELATION = re.compile("|".join(rf"\b{relation}\b" for relation in RELATIONS))


def read_prompt(text: str) -> Prompt | None:
    """The prompt with the columns that a verdict needs; None when the words are no request that can be checked.

    Understood are objects joined by commas and "and" ("two red circles, a cross and a blue square"), and two single
    objects with a relation between them. The text stays as it was typed.

    >>> read_prompt("Two red circles and a cross").columns["include"]
    [{'class': 'circle', 'count': 2, 'color': 'red'}, {'class': 'cross', 'count': 1}]
    >>> read_prompt("something nice") is None
    True
    """
    words = " ".join(text.lower().replace(",", " , ").split())
    found = _RELATION.search(words)
    if found:
        sides = [_group(words[: found.start()]), _group(words[found.end() :])]
        groups = [side for side in sides if side is not None and side.number == 1]
        if len(groups) < 2:
            return None
        tag, relation = "position", found.group()
    else:
        read = [_group(phrase) for phrase in re.split(r" , and | , | and ", words)]
        groups = [group for group in read if group is not None]
        if len(groups) < len(read):
            return None
        tag, relation = _tag(groups), ""
    return Prompt(text=text, columns={**make_prompt(tag, groups, relation).columns, "prompt": text})


def _group(phrase: str) -> Group | None:
    words = phrase.split()
    number = 1
    if words and words[0] in (*_ARTICLES, *NUMBERS[1:]):
        first = words.pop(0)
        number = 1 if first in _ARTICLES else NUMBERS.index(first)
    color = words.pop(0) if words and words[0] in COLORS else ""
    if len(words) != 1 or words[0] not in _NOUNS:
        return None
    return Group(_NOUNS[words[0]], number, color)


def _tag(groups: list[Group]) -> str:
    """The kind that the training prompts of this form have."""
    counted = any(group.number > 1 for group in groups)
    colored = all(group.color for group in groups)
    if len(groups) == 1:
        return ("count_color" if colored else "counting") if counted else ("colors" if colored else "single_object")
    if counted:
        return "multi_color_count" if colored else "multi_count"
    if len(groups) == 2 and colored:
        return "color_attr"
    return "two_object" if len(groups) == 2 and not any(group.color for group in groups) else "multi_object"
