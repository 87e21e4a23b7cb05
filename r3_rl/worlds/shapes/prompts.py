"""Prompts of the shapes world in GenEval's metadata schema, and scenes that satisfy them.

A prompt asks for groups of objects and constrains only what it says: the colour of "a circle" is free, extra objects
are wrong. GenEval's six tags come first; HARD_TAGS ask for several things at once, in the manner of GenEval++.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from r3_rl.errors import InputError
from r3_rl.types import Prompt
from r3_rl.worlds.shapes.scene import CELLS, COLORS, SHAPES, Obj, Scene, new_object, pick

EASY_TAGS = ("single_object", "two_object", "counting", "colors", "color_attr", "position")
HARD_TAGS = ("count_color", "multi_count", "multi_color_count", "multi_object")
TAGS = EASY_TAGS + HARD_TAGS
ALWAYS_TRAINED = ("single_object", "two_object", "colors")
"""Kinds with so few prompts that none is held out: both splits draw from all of them."""
HELD_OUT_SHARE = 0.2
_SALT = "5 "  # Of the first ten, the one that holds out three of the twelve counting prompts; most hold out one.
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RELATIONS = ("left of", "right of", "above", "below")
_MIRROR = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


class Group(NamedTuple):
    """`number` objects of one shape and, where `color` is not empty, of one colour."""

    shape: str
    number: int = 1
    color: str = ""

    def words(self) -> str:
        """Without number or article: "red circles"."""
        noun = self.shape if self.number == 1 else plural(self.shape)
        return f"{self.color} {noun}" if self.color else noun

    def fits(self, o: Obj) -> bool:
        """Is the object what the group asks for, its looks apart?"""
        return o.shape == self.shape and self.color in ("", o.color)


class Request(NamedTuple):
    """What a prompt asks for: its groups as mentioned, and for a position prompt how the first stands to the second."""

    groups: tuple[Group, ...]
    relation: str = ""


def plural(shape: str) -> str:
    """The word for several.

    >>> plural("cross")
    'crosses'
    """
    return shape + ("es" if shape.endswith("s") else "s")


def holds(relation: str, first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Does the relation hold between two (row, column) cells? It asks for another column (or row) in that direction.

    >>> holds("left of", (0, 0), (2, 1)), holds("above", (1, 0), (1, 2))
    (True, False)
    """
    if relation in ("left of", "right of"):
        return first[1] < second[1] if relation == "left of" else first[1] > second[1]
    return first[0] < second[0] if relation == "above" else first[0] > second[0]


def _phrase(group: Group, tag: str) -> str:
    counted = tag in ("counting", "count_color", "multi_count", "multi_color_count")
    return f"{NUMBERS[group.number] if counted else 'a'} {group.words()}"


def _text(request: Request, tag: str) -> str:
    parts = [_phrase(group, tag) for group in request.groups]
    if request.relation:
        return f"{parts[0]} {request.relation} {parts[1]}"
    return parts[0] if len(parts) == 1 else " , ".join(parts[:-1]) + " and " + parts[-1]


def _include(group: Group) -> dict[str, Any]:
    return {"class": group.shape, "count": group.number, **({"color": group.color} if group.color else {})}


def make_prompt(tag: str, groups: Sequence[Group], relation: str = "") -> Prompt:
    """The prompt that asks for these groups.

    As in GenEval a position prompt lists the object of reference first, and the one whose place is asked for second;
    kinds that count exclude one more of each group.

    >>> make_prompt("counting", [Group("circle", 3)]).columns["exclude"]
    [{'class': 'circle', 'count': 4}]
    """
    request = Request(tuple(groups), relation)
    text = _text(request, tag)
    include = [_include(group) for group in groups]
    if relation:
        include = [include[1], {**include[0], "position": [relation, 0]}]
    counted = any(group.number > 1 for group in groups)
    exclude = [{**item, "count": item["count"] + 1} for item in include] if counted else []
    return Prompt(text=text, columns={"tag": tag, "include": include, "exclude": exclude, "prompt": text})


def request_of(columns: Mapping[str, Any]) -> Request:
    """Read what is asked for from GenEval's `include` list, in the order of the prompt's words.

    Args:
        columns: needs `include`, a list of {"class", "count", and optionally "color", "position": [relation, 0]}.

    Raises:
        InputError: an item names a shape, colour or relation that this world does not have.
    """
    items = columns["include"]
    key = tuple(
        (item["class"], int(item["count"]), item.get("color") or "", *(item.get("position") or ("",))[:1])
        for item in items
    )
    return _request(key)


@lru_cache(maxsize=65536)
def _request(key: tuple[tuple[str, int, str, str], ...]) -> Request:
    for shape, _, color, relation in key:
        if shape not in SHAPES or color not in ("", *COLORS) or relation not in ("", *RELATIONS):
            raise InputError(
                f"the shapes world cannot draw {color} {shape} {relation}".rstrip(),
                hint=f"shapes: {', '.join(SHAPES)}; colours: {', '.join(COLORS)}; relations: {', '.join(RELATIONS)}",
            )
    groups = tuple(Group(shape, count, color) for shape, count, color, _ in key)
    if len(key) == 2 and key[1][3]:
        return Request((groups[1], groups[0]), key[1][3])
    return Request(groups)


def is_held_out(prompt: Prompt) -> bool:
    """Is the prompt kept from training? Decided by a hash of what it asks for.

    Prompts that mean the same ("a red circle and a blue square", "a blue square and a red circle") fall on one side.
    """
    if prompt.columns["tag"] in ALWAYS_TRAINED:
        return False
    request = request_of(prompt.columns)
    if request.relation in ("right of", "below"):
        request = Request(request.groups[::-1], _MIRROR[request.relation])
    groups = request.groups if request.relation else sorted(request.groups)
    meaning = _SALT + ";".join(f"{g.number} {g.color} {g.shape}" for g in groups) + request.relation
    return int(hashlib.sha256(meaning.encode()).hexdigest()[:8], 16) < HELD_OUT_SHARE * 16**8


@cache
def all_prompts(tag: str) -> tuple[Prompt, ...]:
    """Every prompt of a kind; `multi_object` has hundreds of thousands and gives a fixed sample of 6,000."""
    kinds = [Group(shape, 1, color) for shape in SHAPES for color in COLORS]
    pairs = [(a, b) for a in kinds for b in kinds if a != b]
    counts = [(i, j) for i in (1, 2, 3, 4) for j in (1, 2, 3, 4) if 2 < i + j < 7]
    requests: Iterable[tuple[Sequence[Group], str]]
    if tag == "single_object":
        requests = [([Group(shape)], "") for shape in SHAPES] + [([g], "") for g in kinds]
    elif tag == "colors":
        requests = [([g], "") for g in kinds]
    elif tag == "two_object":
        requests = [([Group(a), Group(b)], "") for a in SHAPES for b in SHAPES if a != b]
    elif tag == "counting":
        requests = [([Group(shape, n)], "") for shape in SHAPES for n in (2, 3, 4)]
    elif tag == "color_attr":
        requests = [(pair, "") for pair in pairs]
    elif tag == "position":
        requests = [(pair, relation) for pair in pairs for relation in RELATIONS]
    elif tag == "count_color":
        requests = [([g._replace(number=n)], "") for g in kinds for n in (2, 3, 4)]
    elif tag == "multi_count":
        requests = [([Group(a, i), Group(b, j)], "") for a in SHAPES for b in SHAPES if a != b for i, j in counts]
    elif tag == "multi_color_count":
        requests = [((a._replace(number=i), b._replace(number=j)), "") for a, b in pairs for i, j in counts]
    elif tag == "multi_object":
        rng = np.random.default_rng(0)
        requests = [(_several(rng), "") for _ in range(6000)]
    else:
        raise InputError(f"no prompts of the kind {tag!r}", hint=f"kinds: {', '.join(TAGS)}")
    unique = {prompt.text: prompt for prompt in (make_prompt(tag, groups, relation) for groups, relation in requests)}
    return tuple(unique.values())


def _several(rng: np.random.Generator) -> list[Group]:
    """Three to five different objects, a quarter of them without a colour.

    A shape named without a colour is named once, so that it is clear which object each phrase asks for.
    """
    groups: list[Group] = []
    num_objects = 3 + int(rng.random() * 3)
    while len(groups) < num_objects:
        # At most two without a colour, or all four shapes could be used up.
        colored = rng.random() < 0.75 or sum(not g.color for g in groups) == 2
        new = Group(pick(SHAPES, rng), 1, pick(COLORS, rng) if colored else "")
        alike = [g for g in groups if g.shape == new.shape]
        if not alike or (colored and all(g.color not in ("", new.color) for g in alike)):
            groups.append(new)
    return groups


@cache
def prompt_pool(tag: str, split: str) -> tuple[Prompt, ...]:
    """The prompts of one kind in one split, `train` or `held_out`."""
    if split not in ("train", "held_out"):
        raise InputError(f"no split {split!r}", hint="use 'train' or 'held_out'")
    prompts = all_prompts(tag)
    if tag in ALWAYS_TRAINED:
        return prompts
    return tuple(p for p in prompts if is_held_out(p) == (split == "held_out"))


def sample_prompts(
    n: int,
    *,
    split: str = "train",
    tags: Sequence[str] | Mapping[str, float] | None = None,
    seed: int | np.random.Generator,
) -> list[Prompt]:
    """Draw prompts with replacement.

    Args:
        n: how many.
        split: `train` or `held_out`; no kind but ALWAYS_TRAINED has a prompt in both.
        tags: kinds, with weights if a mapping; None draws from all equally.
        seed: a number, or a generator that is drawn from.

    >>> [p.columns["tag"] for p in sample_prompts(2, tags=["position"], seed=0)]
    ['position', 'position']
    """
    weights = dict(tags) if isinstance(tags, Mapping) else dict.fromkeys(tags or TAGS, 1.0)
    pools = [prompt_pool(tag, split) for tag in weights]
    rng = np.random.default_rng(seed)
    edges = np.cumsum(list(weights.values())) / sum(weights.values())
    # The last edge may fall short of 1 by rounding.
    kinds = np.minimum(np.searchsorted(edges, rng.random(n), side="right"), len(pools) - 1)
    return [pick(pools[kind], rng) for kind in kinds]


def sample_scene(prompt: Prompt, rng: np.random.Generator) -> Scene:
    """A random scene that satisfies the prompt, its objects in the prompt's order (inside a group in reading order)."""
    request = request_of(prompt.columns)
    order = rng.permutation(9)
    cells = [CELLS[i] for i in order[: sum(g.number for g in request.groups)]]
    while request.relation and not holds(request.relation, cells[0], cells[1]):
        cells = [CELLS[i] for i in rng.permutation(9)[:2]]
    scene: list[Obj] = []
    for group in request.groups:
        here, cells = sorted(cells[: group.number]), cells[group.number :]
        scene += [new_object(group.color or pick(COLORS, rng), group.shape, cell, rng) for cell in here]
    return tuple(scene)
