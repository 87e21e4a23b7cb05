"""Contexts -> cached keys and values, what a group shares encoded once.

Shapes: B contexts, G rows that share their leading pieces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from r3_rl.policy.bagel.attention import CachePart
from r3_rl.policy.bagel.model import Bagel
from r3_rl.policy.bagel.packing import Block, pack
from r3_rl.policy.bagel.reader import Reader
from r3_rl.types import Context


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """The cached contexts of a batch."""

    parts: list[CachePart]
    """In order; empty when every context is empty."""
    next_position: Tensor
    """int64 [B] rotary position of whatever follows."""

    def select(self, rows: Tensor) -> Encoded:
        """Some of the batch's rows."""
        return Encoded(parts=[p.select(rows) for p in self.parts], next_position=self.next_position[rows])


def run_length(keys: Sequence[tuple[int, ...]]) -> int:
    """Length of the runs when equal keys stand in runs of one length, each key in one run only; else 1.

    >>> run_length([(1,), (1,), (2,), (2,)]), run_length([(1,), (2,), (2,)]), run_length([(1,), (2,), (1,), (2,)])
    (2, 1, 1)
    """
    count = len(set(keys))
    length = len(keys) // count
    if length == 1 or length * count != len(keys):
        return 1
    in_runs = all(keys[i] == keys[i - i % length] for i in range(len(keys)))
    return length if in_runs else 1


def shared_depth(contexts: Sequence[Context]) -> tuple[int, int]:
    """How many leading pieces whole groups share (by identity), and the group size: (depth, G)."""
    for depth in range(min(len(c) for c in contexts), 0, -1):
        length = run_length([tuple(id(piece) for piece in c[:depth]) for c in contexts])
        if length > 1:
            return depth, length
    return 0, 1


@dataclass(frozen=True, kw_only=True)
class Peers:
    """Rows whose contexts begin with the same pieces."""

    rows: tuple[int, ...]
    """Places in the batch."""
    depth: int
    """How many leading pieces they share; 0 for the rows that share none with another."""


def peers_of(contexts: Sequence[Context]) -> list[Peers]:
    """Every row with those that share the longest beginning with it, in any order of rows and any number.

    >>> from r3_rl.types import TextPiece
    >>> a, b = TextPiece(text="a"), TextPiece(text="b")
    >>> [(p.depth, p.rows) for p in peers_of([(a,), (b,), (a, b)])]
    [(1, (0, 2)), (0, (1,))]
    """
    keys = [tuple(id(piece) for piece in context) for context in contexts]
    counts = Counter(key[:depth] for key in keys for depth in range(1, len(key) + 1))
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, key in enumerate(keys):
        depth = max((d for d in range(1, len(key) + 1) if counts[key[:d]] > 1), default=0)
        groups.setdefault(key[:depth], []).append(row)
    shared = [Peers(rows=tuple(rows), depth=len(key)) for key, rows in groups.items() if key and len(rows) > 1]
    alone = sorted(row for key, rows in groups.items() if not key or len(rows) == 1 for row in rows)
    return [*shared, *([Peers(rows=tuple(alone), depth=0)] if alone else [])]


def encode_peers(model: Bagel, reader: Reader, contexts: Sequence[Context], peers: Sequence[Peers]) -> Encoded:
    """What the peers share, once each, as the past of their rows one after the other; gradient flows through it."""
    encoded = encode_rows(model, [reader.blocks(contexts[p.rows[0]][: p.depth]) for p in peers])
    sizes = [len(p.rows) for p in peers]
    owner = torch.arange(len(peers), device=model.device).repeat_interleave(torch.tensor(sizes, device=model.device))
    if len(set(sizes)) > 1:
        return encoded.select(owner)
    for part in encoded.parts:
        part.share = sizes[0]
    return Encoded(parts=encoded.parts, next_position=encoded.next_position[owner])


def encode_rows(
    model: Bagel,
    rows: Sequence[Sequence[Block]],
    past: Encoded | None = None,
) -> Encoded:
    """Appends one row of blocks a context to the cache. Rows may be empty only all together."""
    if not any(rows):
        zero = torch.zeros(len(rows), dtype=torch.int64, device=model.device)
        return past or Encoded(parts=[], next_position=zero)
    start = past.next_position.tolist() if past else None
    packed = pack(rows, model.config, start=start, device=model.device)
    part = model(packed, past.parts if past else None, keep=True).part
    # read many times from here on: laid out once
    part.keys, part.values = ([x.contiguous() for x in own] for own in (part.keys, part.values))
    return Encoded(parts=[*(past.parts if past else []), part], next_position=packed.next_position)


def encode(model: Bagel, reader: Reader, contexts: Sequence[Context]) -> Encoded:
    """Encodes B contexts. Leading pieces that groups of rows share by identity are encoded once a group."""
    depth, group = shared_depth(contexts)
    if group == 1:
        return encode_rows(model, [reader.blocks(c) for c in contexts])
    head = encode_rows(model, [reader.blocks(c[:depth]) for c in contexts[::group]])
    for part in head.parts:
        part.share = group
    head = Encoded(parts=head.parts, next_position=head.next_position.repeat_interleave(group))
    return encode_rows(model, [reader.blocks(c[depth:]) for c in contexts], head)
