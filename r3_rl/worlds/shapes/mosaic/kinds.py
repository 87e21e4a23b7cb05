"""The six kinds of requests of the mosaic world: two to nine objects, counts up to five, sizes, relations of three."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from r3_rl.worlds.shapes.requests import COLORED, Group, PromptKind, Request
from r3_rl.worlds.shapes.terms import RELATIONS, SHAPES, SIZES, pick

NUM_SAMPLED = 6000
"""Prompts of a kind that has hundreds of thousands."""
MOST_OBJECTS = 9


def _counts() -> Iterable[Request]:
    sized = [group._replace(size=size) for group in COLORED for size in ("", *SIZES)]
    return (Request((group._replace(number=number),)) for group in sized for number in (3, 4, 5))


def _relation() -> Iterable[Request]:
    pairs = [(a, b) for a in COLORED for b in COLORED if a != b]
    return (Request(pair, (relation,)) for pair in pairs for relation in RELATIONS)


def _two_relations() -> Iterable[Request]:
    rng = np.random.default_rng(1)
    for _ in range(NUM_SAMPLED):
        groups = _different(3, rng, size_share=0.0)
        yield Request(tuple(groups), (pick(RELATIONS, rng), pick(RELATIONS, rng)))


def _objects() -> Iterable[Request]:
    rng = np.random.default_rng(2)
    for _ in range(NUM_SAMPLED):
        yield Request(tuple(_different(4 + int(rng.random() * 3), rng, size_share=0.4)))


def _two_counts() -> Iterable[Request]:
    rng = np.random.default_rng(3)
    for _ in range(NUM_SAMPLED):
        if rng.random() < 0.5:
            groups = _different(2, rng, size_share=0.4)
        else:  # of no colour, which only shapes tell apart
            first, second = (SHAPES[i] for i in rng.permutation(len(SHAPES))[:2])
            groups = [Group(first), Group(second)]
        yield Request(tuple(_numbered(groups, 5, rng)))


def _three_counts() -> Iterable[Request]:
    rng = np.random.default_rng(4)
    for _ in range(NUM_SAMPLED):
        yield Request(tuple(_numbered(_different(3, rng, size_share=0.3), 4, rng)))


def _different(count: int, rng: np.random.Generator, *, size_share: float) -> list[Group]:
    """Single objects of different shape or colour, of which a share names its size."""
    chosen = [COLORED[i] for i in rng.permutation(len(COLORED))[:count]]
    return [group._replace(size=pick(SIZES, rng) if rng.random() < size_share else "") for group in chosen]


def _numbered(groups: Sequence[Group], most: int, rng: np.random.Generator) -> list[Group]:
    """Random numbers for groups: up to `most` each, from two more than there are groups to MOST_OBJECTS together."""
    while True:
        numbers = [1 + int(rng.random() * most) for _ in groups]
        if len(groups) + 2 <= sum(numbers) <= MOST_OBJECTS:
            return [group._replace(number=number) for group, number in zip(groups, numbers, strict=True)]


MOSAIC_KINDS = {
    "count": PromptKind(requests=_counts, counted=True, plan_weight=0.5),
    "two_counts": PromptKind(requests=_two_counts, counted=True),
    "three_counts": PromptKind(requests=_three_counts, counted=True, harder=True),
    "objects": PromptKind(requests=_objects, harder=True),
    # words alone teach relations slowly and cost little, so many of the plans without image are about relations
    "relation": PromptKind(requests=_relation, plan_weight=2.0),
    "two_relations": PromptKind(requests=_two_relations, harder=True, plan_weight=2.0),
}


def kind_of_mosaic(groups: Sequence[Group], relations: Sequence[str]) -> str:
    """The kind of MOSAIC_KINDS whose prompts have this form, or the nearest one.

    >>> kind_of_mosaic([Group("circle", 3, "red"), Group("cross", 2)], ())
    'two_counts'
    >>> assert {kind_of_mosaic(*next(iter(kind.requests()))) for kind in MOSAIC_KINDS.values()} == {*MOSAIC_KINDS}
    """
    if relations:
        return "relation" if len(relations) == 1 else "two_relations"
    if all(group.number == 1 for group in groups) and len(groups) > 1:
        return "objects"
    return ("count", "two_counts", "three_counts")[min(len(groups), 3) - 1]
