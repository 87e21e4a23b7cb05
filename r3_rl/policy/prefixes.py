"""Which rows of a batch read the same pieces first: one prefix tree over keys.

It serves everything that reads contexts: texts to write, images to draw together with the branches that guidance
drops, and replay. Shapes: B contexts.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from r3_rl.types import Context, context_key


@dataclass(frozen=True, kw_only=True)
class Span:
    """Pieces that the same rows read one after the other: a chain of the tree without a branch in it."""

    pieces: Context
    """At least one."""
    rows: tuple[int, ...]
    """The contexts that hold these pieces at this place, after the same pieces, rising."""


def spans(contexts: Sequence[Context], *, least: int = 1) -> list[list[Span]]:
    """Return the spans of B contexts, level by level: the pieces before a span are those of its rows' spans in earlier
    levels. Groups may have any size and any order. Contexts that share nothing are one level of B spans.

    Args:
        contexts: any of them may be empty.
        least: leave out spans with fewer rows than this, and what follows them; 2 returns only what is shared.

    >>> from r3_rl.types import TextPiece
    >>> a, b, c = (TextPiece(text=text) for text in "abc")
    >>> levels = spans([(a, b), (a, c), (a,), (c, b)])
    >>> [[("".join(piece.text for piece in s.pieces), s.rows) for s in level] for level in levels]
    [[('a', (0, 1, 2)), ('cb', (3,))], [('b', (0,)), ('c', (1,))]]
    """
    keys = [context_key(context) for context in contexts]
    levels: list[list[Span]] = []
    heads = [(rows, 0) for rows in _branches(keys, range(len(keys)), 0, least)]
    while heads:
        level: list[Span] = []
        following: list[tuple[tuple[int, ...], int]] = []
        for rows, start in heads:
            end = _end(keys, rows, start)
            level.append(Span(pieces=contexts[rows[0]][start:end], rows=rows))
            following += [(branch, end) for branch in _branches(keys, rows, end, least)]
        levels.append(level)
        heads = following
    return levels


def _branches(
    keys: Sequence[tuple[Hashable, ...]], rows: Iterable[int], depth: int, least: int
) -> list[tuple[int, ...]]:
    """The rows by their piece at `depth`, in the order in which they come; rows that end before it are left out."""
    found: dict[Hashable, list[int]] = {}
    for row in rows:
        if len(keys[row]) > depth:
            found.setdefault(keys[row][depth], []).append(row)
    return [tuple(same) for same in found.values() if len(same) >= least]


def _end(keys: Sequence[tuple[Hashable, ...]], rows: Sequence[int], start: int) -> int:
    """Where rows that have one piece at `start` stop reading together: one of them ends there or branches off."""
    first, end = keys[rows[0]], start + 1
    while all(len(keys[row]) > end and keys[row][end] == first[end] for row in rows):
        end += 1
    return end
