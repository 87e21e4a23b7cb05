"""What is wrong with a scene: the smallest set of edits to what a prompt asks for, and the verdict made of it.

Assigning the objects that are there to the objects that are asked for, at the lowest cost, gives both. An object that
fits costs 0, a wrong colour 1, a wrong shape 1, a malformed one at least 1; one too many or too few costs 1; for a
position prompt moves are counted on top. No edit is needed if and only if the prompt is satisfied exactly. Where a
move also repairs a malformed object the count is one too high.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from r3_rl.errors import MissingPackageError
from r3_rl.types import Prompt
from r3_rl.worlds.shapes.language import cell_words, object_words
from r3_rl.worlds.shapes.prompts import Group, Request, holds, request_of
from r3_rl.worlds.shapes.scene import CELLS, COLORS, Edit, Obj, Scene, apply_edit, free_cells, pick, reading_order

Cell = tuple[int, int]

# Removing and adding costs as much as changing colour and shape; the trifle makes changing the preferred way.
_TRIFLE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """How well a scene does what a prompt asks for."""

    strict: bool
    """All stated counts, colours and positions, no other object, none malformed."""
    partial: float
    """In [0, 1]: 1 - edits needed / objects asked for, at least 0; 1 only where `strict`."""
    words: str
    """What was expected and what was found; "correct" where `strict`."""


def _slots(request: Request) -> list[Group]:
    return [group._replace(number=1) for group in request.groups for _ in range(group.number)]


def _cost(o: Obj, slot: Group) -> int:
    wrong = (o.shape != slot.shape) + (slot.color not in ("", o.color))
    return max(wrong, 1) if o.rough else wrong


def _assign(scene: Scene, slots: Sequence[Group], jitter: np.ndarray | None) -> dict[int, int]:
    """Slot of each object that keeps its place; the others are removed, slots without an object are added."""
    try:  # Here, because listing the scorers must work, and be quick, without it.
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MissingPackageError("judging shapes needs scipy", hint="pip install 'r3-rl[train]'") from error
    m, n = len(slots), len(scene)
    costs = np.full((n + m, m + n), 1 + _TRIFLE)
    costs[n:, m:] = 0.0
    for i, o in enumerate(scene):
        for j, slot in enumerate(slots):
            costs[i, j] = _cost(o, slot)
    if jitter is not None:
        costs += jitter[: n + m, : m + n]
    rows, columns = linear_sum_assignment(costs)
    return {int(i): int(j) for i, j in zip(rows, columns, strict=True) if i < n and j < m}


def _can_stand(relation: str, first: bool, other: Cell, free: Sequence[Cell]) -> list[Cell]:
    """Free cells where the first (or the second) object of a relation may stand, given the other one's cell."""
    return [c for c in free if (holds(relation, c, other) if first else holds(relation, other, c))]


def _moves_needed(scene: Scene, relation: str, first: int | None, second: int | None) -> int:
    """Moves on top of the other edits, for objects `first` and `second` of the scene (None: one that is added)."""
    if first is None and second is None:
        return 0
    if first is not None and second is not None:
        a, b = scene[first].cell, scene[second].cell
        if holds(relation, a, b):
            return 0
        free = free_cells(scene)
        return 1 if _can_stand(relation, True, b, free) or _can_stand(relation, False, a, free) else 2
    there = scene[first if first is not None else second].cell  # type: ignore[index]
    return 0 if _can_stand(relation, second is not None, there, free_cells(scene)) else 1


def _assign_related(scene: Scene, request: Request, jitter: np.ndarray | None) -> tuple[float, dict[int, int]]:
    """The cheapest assignment of a position prompt, by trying all; returns cost and slot of each kept object."""
    slots = _slots(request)
    options: list[int | None] = [None, *range(len(scene))]
    best: tuple[float, dict[int, int]] = (np.inf, {})
    for first, second in itertools.product(options, options):
        if first == second and first is not None:
            continue
        kept = [(i, j) for j, i in enumerate((first, second)) if i is not None]
        cost = float(sum(_cost(scene[i], slots[j]) for i, j in kept))
        cost += _moves_needed(scene, request.relation, first, second)
        cost += (1 + _TRIFLE) * (len(scene) - len(kept) + 2 - len(kept))
        if jitter is not None:
            cost += jitter[first or 0, second or 0]
        if cost < best[0]:
            best = cost, dict(kept)
    return best


def edits_needed(scene: Sequence[Obj], prompt: Prompt | Mapping[str, Any]) -> int:
    """How many single edits (change, turn, add, remove, move) lead from the scene to what the prompt asks for.

    >>> from r3_rl.worlds.shapes.prompts import make_prompt
    >>> edits_needed((Obj("red", "circle", 0, 0),), make_prompt("counting", [Group("circle", 3)]))
    2
    """
    return _edits_needed(tuple(scene), request_of(prompt.columns if isinstance(prompt, Prompt) else prompt))


def _edits_needed(scene: Scene, request: Request) -> int:
    if request.relation:
        return round(_assign_related(scene, request, None)[0])
    slots = _slots(request)
    kept = _assign(scene, slots, None)
    return sum(_cost(scene[i], slots[j]) for i, j in kept.items()) + len(scene) + len(slots) - 2 * len(kept)


def useful_edits(scene: Scene, prompt: Prompt | Mapping[str, Any], rng: np.random.Generator) -> list[Edit]:
    """The edits of one smallest set that leads from the scene to the prompt; none when right.

    Each can be done first and lowers `edits_needed`. They come in reading order, additions last. Of several smallest
    sets it is always the same one (of too many circles the first go): a rule is learned where a toss-up is not. `rng`
    chooses what is free: the cell of what is added or moved, a colour that nobody asked for.
    """
    request = request_of(prompt.columns if isinstance(prompt, Prompt) else prompt)
    scene, slots = reading_order(scene), _slots(request)
    size = len(scene) + len(slots) + 1
    # Products below 1: they set equal assignments apart and never outweigh an edit.
    jitter = np.outer(np.arange(size), np.arange(1, size + 1)) * (_TRIFLE / 50 / size**2)
    kept = _assign_related(scene, request, jitter)[1] if request.relation else _assign(scene, slots, jitter)
    edits: list[Edit] = []
    for i, o in enumerate(scene):
        if i not in kept:
            edits.append(Edit("remove", "", o.shape, o.row, o.col))
            continue
        slot = slots[kept[i]]
        # A tinted object is repaired by saying which colour, every other malformed one by saying which shape.
        redrawn_by_color = o.rough == "tinted" and o.shape == slot.shape and slot.color != ""
        if slot.color not in ("", o.color) or redrawn_by_color:
            edits.append(Edit("change", "", o.shape, o.row, o.col, to_color=slot.color))
        if o.shape != slot.shape or (o.rough and not redrawn_by_color and slot.color in ("", o.color)):
            edits.append(Edit("turn", "", o.shape, o.row, o.col, to_shape=slot.shape))
    missing = [j for j in range(len(slots)) if j not in kept.values()]
    if request.relation:
        edits += _position_edits(scene, request, {j: i for i, j in kept.items()}, rng)
        # Where each of two objects could move, or only one can, a look at the result tells which moves help.
        now, after = _edits_needed(scene, request), (apply_edit(scene, edit) for edit in edits)
        return [e for e, new in zip(edits, after, strict=True) if new is not None and _edits_needed(new, request) < now]
    if missing and (free := free_cells(scene)):
        order = rng.permutation(len(free))
        for j, k in zip(missing, order, strict=False):
            edits.append(Edit("add", slots[j].color or pick(COLORS, rng), slots[j].shape, *free[k]))
    return edits


def _position_edits(scene: Scene, request: Request, object_of: dict[int, int], rng: np.random.Generator) -> list[Edit]:
    """Moves and additions that bring a position prompt's two objects to where they should be."""
    free = free_cells(scene)
    edits: list[Edit] = []
    for j, slot in enumerate(_slots(request)):
        me, other = object_of.get(j), object_of.get(1 - j)
        # Where the other object is not there yet, any cell that leaves it room will do.
        others = [scene[other].cell] if other is not None else list(CELLS)
        places = [c for c in free if any(c in _can_stand(request.relation, j == 0, o, [c]) for o in others if o != c)]
        if me is None:
            if places:
                edits.append(Edit("add", slot.color or pick(COLORS, rng), slot.shape, *pick(places, rng)))
            continue
        o = scene[me]
        settled = any(_can_stand(request.relation, j == 0, there, [o.cell]) for there in others)
        if not settled:
            if not places and other is not None:  # Both have to move; this one first, to where the other finds room.
                places = [c for c in free if _can_stand(request.relation, j != 0, c, free)]
            if places:
                row, col = pick(places, rng)
                edits.append(Edit("move", "", o.shape, o.row, o.col, to_row=row, to_col=col))
    return edits


def judge(scene: Sequence[Obj], prompt: Prompt | Mapping[str, Any]) -> Judgement:
    """Compare what is in a picture with a prompt (or its columns).

    >>> from r3_rl.worlds.shapes.prompts import make_prompt
    >>> judge((), make_prompt("single_object", [Group("circle")])).words
    'expected circle>=1, found 0'
    """
    request = request_of(prompt.columns if isinstance(prompt, Prompt) else prompt)
    scene = tuple(scene)
    needed = _edits_needed(scene, request)
    size = sum(group.number for group in request.groups)
    words = "correct" if needed == 0 else "; ".join(_complaints(scene, request))
    return Judgement(strict=needed == 0, partial=max(0.0, 1.0 - needed / size), words=words)


def _complaints(scene: Scene, request: Request) -> list[str]:
    clean = [o for o in scene if not o.rough]
    out = [f"malformed {object_words(o._replace(rough=''))}" for o in scene if o.rough]
    for group in request.groups:
        found = sum(group.fits(o) for o in clean)
        if found < group.number:
            out.append(f"expected {group._replace(number=1).words()}>={group.number}, found {found}")
    size = sum(group.number for group in request.groups)
    if len(scene) > size:
        out.append(f"expected {size} objects in all, found {len(scene)}")
    if request.relation and not out:
        first, second = (next(o for o in clean if g.fits(o)) for g in request.groups)
        places = f"{cell_words(*first.cell)} and {cell_words(*second.cell)}"
        wanted = f"{request.groups[0].words()} {request.relation} {request.groups[1].words()}"
        out.append(f"expected {wanted}, found {places}")
    return out or ["expected each object once, found one in place of another"]
