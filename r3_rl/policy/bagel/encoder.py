"""Contexts -> cached keys and values, every prefix that rows share read once.

Shapes: B contexts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from r3_rl.modalities import Context, Piece
from r3_rl.policy.bagel.attention import CachePart
from r3_rl.policy.bagel.model import Bagel
from r3_rl.policy.bagel.packing import Block, num_tokens, pack
from r3_rl.policy.bagel.reader import Reader
from r3_rl.policy.prefixes import Span, spans

_MOST_PADDING = 4096
"""Tokens. A pass that would be padded by more is split: keys of padding are stored as long as those of tokens."""


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

    def gathered(self) -> Encoded:
        """The same contexts without an `owner`: what unequal groups read is copied for every row and joined into one
        part; what equal runs of rows share stays shared."""
        if all(part.owner is None for part in self.parts):
            return self
        shared = [part for part in self.parts if part.share > 1]
        rows = torch.arange(self.next_position.shape[0], device=self.next_position.device)
        copies = [part.select(rows) for part in self.parts if part.share == 1]
        masks = [part.layer(0).mask(len(rows)) for part in copies]
        joined = CachePart(
            keys=[torch.cat(layer, 2) for layer in zip(*(part.keys for part in copies), strict=True)],
            values=[torch.cat(layer, 2) for layer in zip(*(part.values for part in copies), strict=True)],
            valid=None if all(part.valid is None for part in copies) else torch.cat(masks, 1),
        )
        return Encoded(parts=[*shared, joined], next_position=self.next_position)


class Contexts:
    """B contexts, their prefix tree read level by level.

    `tasks`: of the rows, where an adapter is routed by task: what one task has read is no other's to look at.
    `least`: prefixes that fewer rows share are left to whoever scores the rows (`rest`); 1 reads everything. Gradient
    flows through the cache where it is enabled.
    """

    def __init__(
        self, model: Bagel, reader: Reader, contexts: Sequence[Context], *, tasks: Sequence[str] = (), least: int = 1
    ) -> None:
        self._model, self._reader, self._contexts = model, reader, contexts
        self._tasks = list(tasks) or [""] * len(contexts)
        self._blocks: dict[Hashable, list[Block]] = {}
        self._parts: list[CachePart] = []
        self._owners: list[list[int]] = []
        self._depth = [0] * len(contexts)
        self._position = [0] * len(contexts)
        for level in spans(contexts, tasks=self._tasks, least=least):
            blocks = [self._read(span.pieces) for span in level]
            for places in _passes([sum(map(num_tokens, row)) for row in blocks]):
                self._append([level[i] for i in places], [blocks[i] for i in places])

    def _append(self, level: Sequence[Span], blocks: Sequence[Sequence[Block]]) -> None:
        """One pass: a row a span, after what its rows have read in earlier levels."""
        model, past = self._model, self.past([span.rows[0] for span in level])
        tasks = self.tasks([span.rows[0] for span in level])
        packed = pack(blocks, model.config, start=past.next_position.tolist(), tasks=tasks, device=model.device)
        part = model(packed, past.parts, keep=True).part
        # read many times from here on: laid out once
        keys, values = ([x.contiguous() for x in own] for own in (part.keys, part.values))
        self._parts.append(CachePart(keys=keys, values=values, valid=part.valid))
        owner = [-1] * len(self._contexts)
        for number, (span, end) in enumerate(zip(level, packed.next_position.tolist(), strict=True)):
            for row in span.rows:
                owner[row] = number
                self._depth[row] += len(span.pieces)
                self._position[row] = end
        self._owners.append(owner)

    def tasks(self, rows: Sequence[int]) -> list[str]:
        """By what some of the rows are read."""
        return [self._tasks[row] for row in rows]

    def past(self, rows: Sequence[int]) -> Encoded:
        """What has been read, as the past of some of the rows. Nothing is copied."""
        owners = [[owner[row] for row in rows] for owner in self._owners]
        parts = [part.read_by(own) for part, own in zip(self._parts, owners, strict=True) if max(own) >= 0]
        position = torch.tensor([self._position[row] for row in rows], device=self._model.device)
        return Encoded(parts=parts, next_position=position)

    def past_of_steps(self, rows: Sequence[int]) -> Encoded:
        """The same for many steps without gradient. A fused kernel gathers what a step reads layer by layer; for plain
        products (small models) what groups of unequal size read is gathered here, once."""
        past = self.past(rows)
        return past.gathered() if self._model.decoder.backend == "matmul" else past

    def rest(self, row: int) -> list[Block]:
        """The blocks of a row's context that the cache does not hold."""
        return self._read(self._contexts[row][self._depth[row] :])

    def by_prefix(self) -> list[tuple[int, ...]]:
        """The rows with a past, then those without, as far as there are any; rows with one past, and those of one task,
        lie side by side."""
        number = {task: place for place, task in enumerate(dict.fromkeys(self._tasks))}
        order = sorted(
            range(len(self._contexts)), key=lambda row: [number[self._tasks[row]], *(own[row] for own in self._owners)]
        )
        split = [tuple(row for row in order if bool(self._depth[row]) is cached) for cached in (True, False)]
        return [rows for rows in split if rows]

    def _read(self, pieces: Sequence[Piece]) -> list[Block]:
        """The blocks of pieces; of equal ones only the first is read."""
        for piece in pieces:
            if piece.key not in self._blocks:
                self._blocks[piece.key] = self._reader.blocks((piece,))
        return [block for piece in pieces for block in self._blocks[piece.key]]


def _passes(lengths: Sequence[int]) -> list[list[int]]:
    """The places of rows, pass by pass: all in one, unless the short ones would be padded by much.

    >>> _passes([9000, 20, 30, 20]), _passes([30, 20])
    ([[0], [1, 2, 3]], [[0, 1]])
    """
    left, passes = list(range(len(lengths))), []
    while left:
        longest = max(lengths[i] for i in left)
        padding = sum(longest - lengths[i] for i in left)
        alike = left if padding <= _MOST_PADDING else [i for i in left if 2 * lengths[i] > longest]
        passes.append(alike)
        left = [i for i in left if i not in alike]
    return passes


def encode(model: Bagel, reader: Reader, contexts: Sequence[Context], tasks: Sequence[str] = ()) -> Encoded:
    """Encode B contexts for many steps; pieces that rows of a task share at their beginning are encoded once, by their
    keys."""
    return Contexts(model, reader, contexts, tasks=tasks).past_of_steps(range(len(contexts)))
