"""Prompts typed by people, read as what they ask for, so that the inspector can judge what was drawn for them."""

from __future__ import annotations

import re

from r3_rl.types import Prompt
from r3_rl.worlds.shapes.board import NINE, Board
from r3_rl.worlds.shapes.prompts import make_prompt
from r3_rl.worlds.shapes.requests import Group
from r3_rl.worlds.shapes.terms import COLORS, NUMBERS, RELATIONS, SHAPES, plural

_ARTICLES = ("a", "an", "the")
_NOUNS = {**{shape: shape for shape in SHAPES}, **{plural(shape): shape for shape in SHAPES}}
_RELATION = re.compile("(" + "|".join(rf"\b{relation}\b" for relation in RELATIONS) + ")")


def read_prompt(text: str, board: Board = NINE) -> Prompt | None:
    """The prompt with the columns that a verdict needs; None when the words are no request that can be checked.

    Understood are objects joined by commas and "and" ("two red circles, a cross and a blue square"), and single objects
    with relations between them, as many as the board's own prompts have ("a circle left of a cross"). The text stays as
    it was typed.

    >>> read_prompt("Two red circles and a cross").columns["include"]
    [{'class': 'circle', 'count': 2, 'color': 'red'}, {'class': 'cross', 'count': 1}]
    >>> read_prompt("something nice") is None
    True
    """
    words = " ".join(text.lower().replace(",", " , ").split())
    first, *stands = _RELATION.split(words)
    relations, others = tuple(stands[::2]), stands[1::2]
    if relations:
        phrases = [first, *(phrase.removesuffix(" and ") for phrase in others[:-1]), *others[-1:]]
    else:
        phrases = re.split(r" , and | , | and ", words)
    groups = [group for phrase in phrases if (group := _group(phrase, board)) is not None]
    if len(groups) < len(phrases) or (relations and any(group.number > 1 for group in groups)):
        return None
    if len(relations) > board.most_relations:
        return None
    prompt = make_prompt(board.kind_of(groups, relations), groups, *relations, board=board)
    return Prompt(text=text, columns={**prompt.columns, "prompt": text})


def _group(phrase: str, board: Board) -> Group | None:
    words = phrase.split()
    number = 1
    if words and words[0] in (*_ARTICLES, *NUMBERS[1:]):
        first = words.pop(0)
        number = 1 if first in _ARTICLES else NUMBERS.index(first)
    size = words.pop(0) if words and words[0] in board.size_words else ""
    color = words.pop(0) if words and words[0] in COLORS else ""
    if len(words) != 1 or words[0] not in _NOUNS:
        return None
    return Group(_NOUNS[words[0]], number, color, size)
