"""Prompts of a world of shapes in GenEval's metadata schema, and scenes that satisfy them.

A prompt asks for groups of objects and constrains only what it says: the colour of "a circle" is free, extra objects
are wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np

from r3_rl.errors import InputError
from r3_rl.types import Prompt
from r3_rl.worlds.shapes.board import NINE, Board
from r3_rl.worlds.shapes.requests import Group, Request
from r3_rl.worlds.shapes.scene import Obj, Scene, new_object
from r3_rl.worlds.shapes.terms import COLORS, MIRROR, NUMBERS, RELATIONS, SHAPES, SIZES, holds, pick

TAGS = tuple(NINE.kinds)
HELD_OUT_SHARE = 0.2


def _text(request: Request, *, counted: bool) -> str:
    parts = [f"{NUMBERS[group.number] if counted else 'a'} {group.words()}" for group in request.groups]
    if request.relations:
        stands = [f"{relation} {part}" for relation, part in zip(request.relations, parts[1:], strict=True)]
        return f"{parts[0]} {' and '.join(stands)}"
    return parts[0] if len(parts) == 1 else " , ".join(parts[:-1]) + " and " + parts[-1]


def _include(group: Group) -> dict[str, Any]:
    stated = {name: value for name, value in (("color", group.color), ("size", group.size)) if value}
    return {"class": group.shape, "count": group.number, **stated}


def make_prompt(tag: str, groups: Sequence[Group], *relations: str, board: Board = NINE) -> Prompt:
    """The prompt that asks for these groups, the first of which stands in the relations to the others.

    As in GenEval the object of reference comes first in `include`, and the one whose place is asked for second; a
    third one stands in its relation to the second. Kinds that count exclude one more of each group.

    >>> make_prompt("counting", [Group("circle", 3)]).columns["exclude"]
    [{'class': 'circle', 'count': 4}]
    """
    request = Request(tuple(groups), relations)
    text = _text(request, counted=board.kinds[tag].counted)
    include = [_include(group) for group in groups]
    if relations:
        first, second, *others = include
        include = [second, {**first, "position": [relations[0], 0]}]
        include += [
            {**other, "position": [MIRROR[relation], 1]} for other, relation in zip(others, relations[1:], strict=True)
        ]
    counted = any(group.number > 1 for group in groups)
    exclude = [{**item, "count": item["count"] + 1} for item in include] if counted else []
    return Prompt(text=text, columns={"tag": tag, "include": include, "exclude": exclude, "prompt": text})


def request_of(columns: Mapping[str, Any]) -> Request:
    """Read what is asked for from GenEval's `include` list, in the order of the prompt's words.

    Args:
        columns: needs `include`, a list of {"class", "count", and optionally "color", "size",
            "position": [relation, which]}.

    Raises:
        InputError: an item names a shape, colour or relation that these worlds do not have.
    """
    key = tuple(
        (
            Group(item["class"], int(item["count"]), item.get("color") or "", item.get("size") or ""),
            *(item.get("position") or ("",))[:1],
        )
        for item in columns["include"]
    )
    return _request(key)


@lru_cache(maxsize=65536)
def _request(key: tuple[tuple[Group, str], ...]) -> Request:
    for group, relation in key:
        known = group.shape in SHAPES and group.color in ("", *COLORS) and group.size in ("", *SIZES)
        if not known or relation not in ("", *RELATIONS):
            asked = " ".join(word for word in (group.size, group.color, group.shape, relation) if word)
            raise InputError(
                f"a world of shapes cannot draw {asked}",
                hint=f"shapes: {', '.join(SHAPES)}; colours: {', '.join(COLORS)}; relations: {', '.join(RELATIONS)}",
            )
    groups = tuple(group for group, _ in key)
    if len(key) < 2 or not key[1][1]:
        return Request(groups)
    relations = (key[1][1], *(MIRROR[relation] for _, relation in key[2:] if relation))
    return Request((groups[1], groups[0], *groups[2:]), relations)


def is_held_out(prompt: Prompt, board: Board = NINE) -> bool:
    """Is the prompt kept from training? Decided by a hash of what it asks for.

    Prompts that mean the same ("a red circle and a blue square", "a blue square and a red circle") fall on one side.
    """
    if board.kinds[prompt.columns["tag"]].always_trained:
        return False
    request = request_of(prompt.columns)
    groups: Sequence[Group] = request.groups
    relations = request.relations
    if relations[:1] in (("right of",), ("below",)) and len(relations) == 1:
        groups, relations = groups[::-1], (MIRROR[relations[0]],)
    elif relations:  # the first to each of the others, in whatever order
        stands = sorted(zip(groups[1:], relations, strict=True))
        groups, relations = (groups[0], *(group for group, _ in stands)), tuple(relation for _, relation in stands)
    else:
        groups = sorted(groups)
    meaning = board.salt + ";".join(map(_meaning, groups)) + ",".join(relations)
    return int(hashlib.sha256(meaning.encode()).hexdigest()[:8], 16) < HELD_OUT_SHARE * 16**8


def _meaning(group: Group) -> str:
    return f"{group.number} {group.size + ' ' if group.size else ''}{group.color} {group.shape}"


def _known(tag: str, board: Board) -> None:
    if tag not in board.kinds:
        raise InputError(f"no prompts of the kind {tag!r}", hint=f"kinds: {', '.join(board.kinds)}")


@cache
def all_prompts(tag: str, board: Board = NINE) -> tuple[Prompt, ...]:
    """Every prompt of a kind, or of a kind without end a fixed sample."""
    _known(tag, board)
    requests = board.kinds[tag].requests()
    prompts = (make_prompt(tag, request.groups, *request.relations, board=board) for request in requests)
    return tuple({prompt.text: prompt for prompt in prompts}.values())


@cache
def prompt_pool(tag: str, split: str, board: Board = NINE) -> tuple[Prompt, ...]:
    """The prompts of one kind in one split, `train` or `held_out`."""
    if split not in ("train", "held_out"):
        raise InputError(f"no split {split!r}", hint="use 'train' or 'held_out'")
    prompts = all_prompts(tag, board)
    if board.kinds[tag].always_trained:
        return prompts
    return tuple(p for p in prompts if is_held_out(p, board) == (split == "held_out"))


def sample_prompts(
    n: int,
    *,
    split: str = "train",
    tags: Sequence[str] | Mapping[str, float] | None = None,
    seed: int | np.random.Generator,
    board: Board = NINE,
) -> list[Prompt]:
    """Draw prompts with replacement.

    Args:
        n: how many.
        split: `train` or `held_out`; only kinds that are `always_trained` have prompts in both.
        tags: kinds, with weights if a mapping; None draws from all equally.
        seed: a number, or a generator that is drawn from.
        board: whose prompts.

    >>> [p.columns["tag"] for p in sample_prompts(2, tags=["position"], seed=0)]
    ['position', 'position']
    """
    weights = dict(tags) if isinstance(tags, Mapping) else dict.fromkeys(tags or board.kinds, 1.0)
    named = list(weights)
    for tag in named:
        _known(tag, board)
    rng = np.random.default_rng(seed)
    edges = np.cumsum(list(weights.values())) / sum(weights.values())
    # The last edge may fall short of 1 by rounding.
    kinds = np.minimum(np.searchsorted(edges, rng.random(n), side="right"), len(named) - 1)
    # a pool is made when it is drawn from: those of the mosaic hold thousands, and a check draws one prompt
    return [pick(prompt_pool(named[kind], split, board), rng) for kind in kinds]


def sample_scene(prompt: Prompt, rng: np.random.Generator, board: Board = NINE) -> Scene:
    """A random scene that satisfies the prompt, its objects in the prompt's order (inside a group in reading order)."""
    request = request_of(prompt.columns)
    size = sum(g.number for g in request.groups)
    while True:
        cells = [board.cells[i] for i in rng.permutation(len(board.cells))[:size]]
        if all(holds(r, cells[0], other) for r, other in zip(request.relations, cells[1:], strict=False)):
            break
    scene: list[Obj] = []
    for group in request.groups:
        here, cells = sorted(cells[: group.number]), cells[group.number :]
        for cell in here:
            color, size_word = group.color or pick(COLORS, rng), group.size or board.any_size(rng)
            scene.append(new_object(color, group.shape, cell, rng, size=size_word, board=board))
    return tuple(scene)
