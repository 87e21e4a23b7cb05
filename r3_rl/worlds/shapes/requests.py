"""What prompts ask for, and the ten kinds of requests of the shapes world."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from r3_rl.worlds.shapes.terms import COLORS, RELATIONS, SHAPES, pick, plural


class Named(Protocol):
    """What a group looks at in an object."""

    @property
    def color(self) -> str: ...

    @property
    def shape(self) -> str: ...

    @property
    def size(self) -> str: ...


class Group(NamedTuple):
    """`number` objects of one shape and, where `color` or `size` is not empty, of one colour or size."""

    shape: str
    number: int = 1
    color: str = ""
    size: str = ""

    def words(self) -> str:
        """Without number or article: "red circles"."""
        noun = self.shape if self.number == 1 else plural(self.shape)
        return " ".join(word for word in (self.size, self.color, noun) if word)

    def num_wrong(self, o: Named) -> int:
        """How many of the object's shape, colour and size are not as asked for."""
        return (o.shape != self.shape) + (self.color not in ("", o.color)) + (self.size not in ("", o.size))

    def fits(self, o: Named) -> bool:
        """Is the object what the group asks for, its looks apart?"""
        return self.num_wrong(o) == 0


class Request(NamedTuple):
    """What a prompt asks for: its groups as mentioned, and how the first stands to each of the following ones."""

    groups: tuple[Group, ...]
    relations: tuple[str, ...] = ()
    """Empty, or one for each group but the first."""


@dataclass(frozen=True, kw_only=True)
class PromptKind:
    """One kind of prompts."""

    requests: Callable[[], Iterable[Request]]
    """All that prompts of the kind ask for, in a fixed order; those that say the same are dropped."""
    counted: bool = False
    """Whether words say how many ("one circle"); otherwise there is one of each ("a circle")."""
    harder: bool = False
    """Whether its figures are also told apart, as those of prompts that ask for several things at once."""
    always_trained: bool = False
    """Too few prompts for any to be held out: both splits draw from all of them."""
    plan_weight: float = 0.4
    """Of the kind among plans without an image."""


COLORED = tuple(Group(shape, 1, color) for shape in SHAPES for color in COLORS)
"""One object of each shape and colour."""
_PAIRS = tuple((a, b) for a in COLORED for b in COLORED if a != b)
_TWO_SHAPES = tuple((Group(a), Group(b)) for a in SHAPES for b in SHAPES if a != b)
_COUNTS = tuple((i, j) for i in (1, 2, 3, 4) for j in (1, 2, 3, 4) if 2 < i + j < 7)


def _each(groups: Iterable[Group]) -> Iterable[Request]:
    return (Request((group,)) for group in groups)


def _counted(pairs: Iterable[tuple[Group, Group]]) -> Iterable[Request]:
    return (Request((a._replace(number=i), b._replace(number=j))) for a, b in pairs for i, j in _COUNTS)


def _many_objects() -> Iterable[Request]:
    rng = np.random.default_rng(0)
    return (Request(tuple(_several(rng))) for _ in range(6000))


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


NINE_KINDS = {
    "single_object": PromptKind(
        requests=lambda: _each([*(Group(shape) for shape in SHAPES), *COLORED]), always_trained=True
    ),
    "two_object": PromptKind(requests=lambda: map(Request, _TWO_SHAPES), always_trained=True),
    "counting": PromptKind(
        requests=lambda: _each(Group(shape, n) for shape in SHAPES for n in (2, 3, 4)), counted=True
    ),
    "colors": PromptKind(requests=lambda: _each(COLORED), always_trained=True),
    "color_attr": PromptKind(requests=lambda: map(Request, _PAIRS)),
    # words alone teach relations slowly and cost little, so most of the plans without image are about positions
    "position": PromptKind(
        requests=lambda: (Request(pair, (relation,)) for pair in _PAIRS for relation in RELATIONS), plan_weight=4.0
    ),
    "count_color": PromptKind(
        requests=lambda: _each(g._replace(number=n) for g in COLORED for n in (2, 3, 4)), counted=True, harder=True
    ),
    "multi_count": PromptKind(requests=lambda: _counted(_TWO_SHAPES), counted=True, harder=True),
    "multi_color_count": PromptKind(requests=lambda: _counted(_PAIRS), counted=True, harder=True),
    "multi_object": PromptKind(requests=_many_objects, harder=True),
}
"""GenEval's six kinds first; the others ask for several things at once, in the manner of GenEval++."""


def kind_of_nine(groups: Sequence[Group], relations: Sequence[str]) -> str:
    """The kind of NINE_KINDS whose prompts have this form."""
    if relations:
        return "position"
    counted = any(group.number > 1 for group in groups)
    colored = all(group.color for group in groups)
    if len(groups) == 1:
        return ("count_color" if colored else "counting") if counted else ("colors" if colored else "single_object")
    if counted:
        return "multi_color_count" if colored else "multi_count"
    if len(groups) == 2 and colored:
        return "color_attr"
    return "two_object" if len(groups) == 2 and not any(group.color for group in groups) else "multi_object"
