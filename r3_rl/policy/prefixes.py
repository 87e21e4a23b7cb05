"""Which rows of a batch read the same pieces first: one prefix tree over keys.

It serves everything that reads contexts: texts to write, images to draw together with the branches that guidance
drops, and replay. Shapes: B contexts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from r3_rl.modalities import Context, TextPiece


def context_key(context: Context) -> tuple[Hashable, ...]:
    """Return the keys of a context's pieces, in order: contexts with equal keys are the same to a policy.

    >>> context_key((TextPiece(text="a"), TextPiece(text="b", token_ids=(7,), keep=True)))
    (('text', 'a', False), ('text', (7,), True))
    """
    return tuple(piece.key for piece in context)


def written_before(context: Context) -> Hashable:
    """Return `(context_key, token_ids)` of the sampled text that a context ends with; None if it does not end with one.

    A plan and the image drawn after it are brought together by this key.

    >>> prompt, plan = TextPiece(text="a red circle"), TextPiece(text="red", token_ids=(7, 2))
    >>> written_before((prompt, plan)) == (context_key((prompt,)), (7, 2)), written_before((prompt,))
    (True, None)
    """
    last = context[-1] if context else None
    if not isinstance(last, TextPiece) or last.token_ids is None:
        return None
    return context_key(context[:-1]), last.token_ids


@dataclass(frozen=True, kw_only=True)
class Span:
    """Pieces that the same rows read one after the other: a chain of the tree without a branch in it."""

    pieces: Context
    """At least one."""
    rows: tuple[int, ...]
    """The contexts that hold these pieces at this place, after the same pieces, rising."""


def spans(contexts: Sequence[Context], *, tasks: Sequence[str] = (), least: int = 1) -> list[list[Span]]:
    """Return the spans of B contexts, level by level: the pieces before a span are those of its rows' spans in earlier
    levels. Groups may have any size and any order. Contexts that share nothing are one level of B spans.

    Args:
        contexts: any of them may be empty.
        tasks: [B], what reads each context; rows of unlike tasks share nothing, and the rows of a task lie side by
            side in every level. Left out, all are read alike.
        least: leave out spans with fewer rows than this, and what follows them; 2 returns only what is shared.

    >>> a, b, c = (TextPiece(text=text) for text in "abc")
    >>> levels = spans([(a, b), (a, c), (a,), (c, b)])
    >>> [[("".join(piece.text for piece in s.pieces), s.rows) for s in level] for level in levels]
    [[('a', (0, 1, 2)), ('cb', (3,))], [('b', (0,)), ('c', (1,))]]
    >>> [span.rows for span in spans([(a,), (a,), (a,)], tasks=["plan", "draft", "plan"])[0]]
    [(0, 2), (1,)]
    """
    keys = [context_key(context) for context in contexts]
    levels: list[list[Span]] = []
    alike: dict[str, list[int]] = {}
    for row in range(len(keys)):
        alike.setdefault(tasks[row] if tasks else "", []).append(row)
    heads: list[tuple[Sequence[int], int]] = [(rows, 0) for rows in alike.values()]  # that have read the same so far
    while heads:
        level: list[Span] = []
        following: list[tuple[Sequence[int], int]] = []
        for parents, start in heads:
            # by their next piece, in the order in which they come; rows that end here are left out
            branches: dict[Hashable, list[int]] = {}
            for row in parents:
                if len(keys[row]) > start:
                    branches.setdefault(keys[row][start], []).append(row)
            for rows in branches.values():
                if len(rows) < least:
                    continue
                # on until one of them ends or branches off
                first, end = keys[rows[0]], start + 1
                while all(len(keys[row]) > end and keys[row][end] == first[end] for row in rows):
                    end += 1
                level.append(Span(pieces=contexts[rows[0]][start:end], rows=tuple(rows)))
                following.append((rows, end))
        if level:
            levels.append(level)
        heads = following
    return levels
