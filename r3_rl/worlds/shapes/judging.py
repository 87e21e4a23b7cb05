"""What is wrong with a scene: the smallest set of edits to what a prompt asks for, and the verdict made of it.

Assigning the objects that are there to the objects that are asked for, at the lowest cost, gives both. An object that
fits costs 0, a wrong colour, shape or size 1 each, a malformed one at least 1; one too many or too few costs 1; for a
prompt with relations moves are counted on top. No edit is needed if and only if the prompt is satisfied exactly. Where
a move also repairs a malformed object the count is one too high.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from r3_rl.errors import MissingPackageError
from r3_rl.types import Prompt
from r3_rl.worlds.shapes.board import NINE, Board
from r3_rl.worlds.shapes.language import cell_words, object_words
from r3_rl.worlds.shapes.prompts import request_of
from r3_rl.worlds.shapes.requests import Group, Request
from r3_rl.worlds.shapes.scene import Edit, Obj, Scene, apply_edit, free_cells, reading_order
from r3_rl.worlds.shapes.terms import COLORS, holds, pick

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
    return max(slot.num_wrong(o), 1) if o.rough else slot.num_wrong(o)


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


def _moves_needed(scene: Scene, relations: Sequence[str], cells: Sequence[Cell | None], board: Board) -> int:
    """Fewest moves on top of the other edits. `cells`: of the first object and of those that it stands in the
    relations to; None where one is added, wherever it fits."""
    free = free_cells(scene, board)
    placed = [i for i, cell in enumerate(cells) if cell is not None]
    for count in range(len(placed)):
        for moved in itertools.combinations(placed, count):
            where = [free if cell is None or i in moved else [cell] for i, cell in enumerate(cells)]
            if _can_stand(relations, where):
                return count
    return len(placed)


def _can_stand(relations: Sequence[str], where: Sequence[Sequence[Cell]]) -> bool:
    """Is there a cell for each object, out of those where it may be, so that all relations hold?"""
    for cell in where[0]:
        others = [
            {other for other in cells if other != cell and holds(relation, cell, other)}
            for relation, cells in zip(relations, where[1:], strict=True)
        ]
        # two sets have two different members unless both are the same single one
        if all(others) and len(set().union(*others)) >= len(others):
            return True
    return False


def _assign_related(
    scene: Scene, request: Request, jitter: np.ndarray | None, board: Board
) -> tuple[float, dict[int, int]]:
    """The cheapest assignment of a prompt with relations, by trying all; returns cost and slot of each kept object."""
    slots = _slots(request)
    options: list[int | None] = [None, *range(len(scene))]
    costs = [[0, *(_cost(o, slot) for o in scene)] for slot in slots]
    best: tuple[float, dict[int, int]] = (np.inf, {})
    for chosen in itertools.product(options, repeat=len(slots)):
        kept = {i: j for j, i in enumerate(chosen) if i is not None}
        if len(kept) < len(slots) - chosen.count(None):
            continue
        cost = float(sum(costs[j][i + 1] for i, j in kept.items()))
        replaced = (1 + _TRIFLE) * (len(scene) + len(slots) - 2 * len(kept))
        if cost + replaced > best[0] + 1e-9:
            continue
        cells = [None if i is None else scene[i].cell for i in chosen]
        cost += _moves_needed(scene, request.relations, cells, board)
        cost += replaced
        if jitter is not None:
            cost += sum(jitter[one or 0, other or 0] for one, other in itertools.pairwise(chosen))
        if cost < best[0]:
            best = cost, kept
    return best


def edits_needed(scene: Sequence[Obj], prompt: Prompt | Mapping[str, Any], board: Board = NINE) -> int:
    """How many single edits (change, turn, make, add, remove, move) lead from the scene to what the prompt asks for.

    >>> from r3_rl.worlds.shapes.prompts import make_prompt
    >>> edits_needed((Obj("red", "circle", 0, 0),), make_prompt("counting", [Group("circle", 3)]))
    2
    """
    return _edits_needed(tuple(scene), request_of(prompt.columns if isinstance(prompt, Prompt) else prompt), board)


def _edits_needed(scene: Scene, request: Request, board: Board) -> int:
    if request.relations:
        return round(_assign_related(scene, request, None, board)[0])
    slots = _slots(request)
    kept = _assign(scene, slots, None)
    return sum(_cost(scene[i], slots[j]) for i, j in kept.items()) + len(scene) + len(slots) - 2 * len(kept)


def useful_edits(
    scene: Scene, prompt: Prompt | Mapping[str, Any], rng: np.random.Generator, board: Board = NINE
) -> list[Edit]:
    """The edits of one smallest set that leads from the scene to the prompt; none when right.

    Each can be done first and lowers `edits_needed`. They come in reading order, additions last. Of several smallest
    sets it is always the same one (of too many circles the first go): a rule is learned where a toss-up is not. `rng`
    chooses what is free: the cell of what is added or moved, a colour or size that nobody asked for.
    """
    request = request_of(prompt.columns if isinstance(prompt, Prompt) else prompt)
    scene, slots = reading_order(scene), _slots(request)
    size = len(scene) + len(slots) + 1
    # Products below 1: they set equal assignments apart and never outweigh an edit.
    jitter = np.outer(np.arange(size), np.arange(1, size + 1)) * (_TRIFLE / 50 / size**2)
    related = bool(request.relations)
    kept = _assign_related(scene, request, jitter, board)[1] if related else _assign(scene, slots, jitter)
    edits: list[Edit] = []
    for i, o in enumerate(scene):
        edits += _repairs(o, slots[kept[i]]) if i in kept else [Edit("remove", "", o.shape, o.row, o.col)]
    missing = [j for j in range(len(slots)) if j not in kept.values()]
    if related:
        edits += _moves_and_additions(scene, request, {j: i for i, j in kept.items()}, rng, board)
        # Where each of two objects could move, or only one can, a look at the result tells which moves help.
        return _helpful(scene, request, edits, board) or _first_helpful_move(scene, request, kept, rng, board)
    if missing and (free := free_cells(scene, board)):
        order = rng.permutation(len(free))
        for j, k in zip(missing, order, strict=False):
            edits.append(_addition(slots[j], free[k], rng, board))
    return edits


def _repairs(o: Obj, slot: Group) -> list[Edit]:
    """What makes a kept object what is asked for."""
    edits = []
    # A tinted object is repaired by saying which colour, every other malformed one by saying which shape.
    redrawn_by_size = slot.size not in ("", o.size)
    redrawn_by_color = o.rough == "tinted" and o.shape == slot.shape and slot.color != "" and not redrawn_by_size
    if slot.color not in ("", o.color) or redrawn_by_color:
        edits.append(Edit("change", "", o.shape, o.row, o.col, to_color=slot.color))
    redrawn = redrawn_by_color or redrawn_by_size or slot.color not in ("", o.color)
    if o.shape != slot.shape or (o.rough and not redrawn):
        edits.append(Edit("turn", "", o.shape, o.row, o.col, to_shape=slot.shape))
    if redrawn_by_size:
        edits.append(Edit("make", "", o.shape, o.row, o.col, to_size=slot.size))
    return edits


def _addition(slot: Group, cell: Cell, rng: np.random.Generator, board: Board) -> Edit:
    color, size = slot.color or pick(COLORS, rng), slot.size or board.any_size(rng)
    return Edit("add", color, slot.shape, *cell, size=size)


def _moves_and_additions(
    scene: Scene, request: Request, object_of: dict[int, int], rng: np.random.Generator, board: Board
) -> list[Edit]:
    """Moves and additions that bring a prompt's related objects to where they should be; some may not help."""
    free = free_cells(scene, board)
    edits: list[Edit] = []
    for j, slot in enumerate(_slots(request)):
        # how this one stands to the others: the first to each of them, each of them to the first
        related = enumerate(request.relations, 1) if j == 0 else [(0, request.relations[j - 1])]
        stands: list[tuple[str, list[Cell] | None]] = []
        for k, relation in related:
            other = object_of.get(k)
            stands.append((relation, None if other is None else [scene[other].cell]))
        me = object_of.get(j)
        # where another object is not there yet, any cell that leaves it room will do
        settled = [c for c in free if _stands(c, stands, board.cells, first=j == 0)]
        if me is None:
            if settled:
                edits.append(_addition(slot, pick(settled, rng), rng, board))
            continue
        o = scene[me]
        if not _stands(o.cell, stands, board.cells, first=j == 0):
            # if others have to move as well: this one first, to where they find room
            places = settled or [c for c in free if _stands(c, [(r, None) for r, _ in stands], free, first=j == 0)]
            if places:
                row, col = pick(places, rng)
                edits.append(Edit("move", "", o.shape, o.row, o.col, to_row=row, to_col=col))
    return edits


def _helpful(scene: Scene, request: Request, edits: Sequence[Edit], board: Board) -> list[Edit]:
    """Those of the edits after which fewer are needed."""
    now, after = _edits_needed(scene, request, board), (apply_edit(scene, edit, board=board) for edit in edits)
    return [
        e for e, new in zip(edits, after, strict=True) if new is not None and _edits_needed(new, request, board) < now
    ]


def _first_helpful_move(
    scene: Scene, request: Request, kept: dict[int, int], rng: np.random.Generator, board: Board
) -> list[Edit]:
    """Where several objects have to move and none finds its place yet: one move that lets the others find theirs."""
    if not _edits_needed(scene, request, board):
        return []
    free = free_cells(scene, board)
    for i in sorted(kept, key=lambda i: kept[i]):
        o = scene[i]
        for k in rng.permutation(len(free)):
            move = Edit("move", "", o.shape, o.row, o.col, to_row=free[k][0], to_col=free[k][1])
            if _helpful(scene, request, [move], board):
                return [move]
    return []


def _stands(
    cell: Cell, stands: Sequence[tuple[str, Sequence[Cell] | None]], anywhere: Sequence[Cell], *, first: bool
) -> bool:
    """Does an object in this cell stand rightly to all others? They are where is said, or (None) anywhere."""
    return all(
        any(
            other != cell and (holds(relation, cell, other) if first else holds(relation, other, cell))
            for other in (anywhere if cells is None else cells)
        )
        for relation, cells in stands
    )


def judge(scene: Sequence[Obj], prompt: Prompt | Mapping[str, Any], board: Board = NINE) -> Judgement:
    """Compare what is in a picture with a prompt (or its columns).

    >>> from r3_rl.worlds.shapes.prompts import make_prompt
    >>> judge((), make_prompt("single_object", [Group("circle")])).words
    'expected circle>=1, found 0'
    """
    request = request_of(prompt.columns if isinstance(prompt, Prompt) else prompt)
    scene = tuple(scene)
    needed = _edits_needed(scene, request, board)
    size = sum(group.number for group in request.groups)
    words = "correct" if needed == 0 else "; ".join(_complaints(scene, request, board))
    return Judgement(strict=needed == 0, partial=max(0.0, 1.0 - needed / size), words=words)


def _complaints(scene: Scene, request: Request, board: Board) -> list[str]:
    clean = [o for o in scene if not o.rough]
    out = [f"malformed {object_words(o._replace(rough=''), board)}" for o in scene if o.rough]
    for group in request.groups:
        found = sum(group.fits(o) for o in clean)
        if found < group.number:
            out.append(f"expected {group._replace(number=1).words()}>={group.number}, found {found}")
    size = sum(group.number for group in request.groups)
    if len(scene) > size:
        out.append(f"expected {size} objects in all, found {len(scene)}")
    if request.relations and not out:
        first, *others = (next(o for o in clean if g.fits(o)) for g in request.groups)
        for relation, group, other in zip(request.relations, request.groups[1:], others, strict=True):
            if not holds(relation, first.cell, other.cell):
                wanted = f"{request.groups[0].words()} {relation} {group.words()}"
                places = f"{cell_words(*first.cell, board)} and {cell_words(*other.cell, board)}"
                out.append(f"expected {wanted}, found {places}")
    return out or ["expected each object once, found one in place of another"]
