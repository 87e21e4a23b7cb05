"""Contexts -> cached keys and values, what a group shares encoded once.

Shapes: B contexts, G rows that share their leading pieces.
"""

from __future__ import annotations

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
    tails = [reader.blocks(c)[len(reader.blocks(c[:depth])) :] if len(c) > depth else [] for c in contexts]
    return encode_rows(model, tails, head)
