"""Rows of blocks (texts, looked-at images, latents) -> one flat batch for the decoder.

A block attends to everything before it in its row. Inside: text is causal, images see themselves whole. A noisy block
(being denoised) is seen by nobody outside itself and does not advance the position, so several denoising steps can
follow one context in one row. Layout rules: the goldens of BAGEL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from r3_rl.errors import InputError
from r3_rl.policy.bagel.config import BagelConfig
from r3_rl.policy.bagel.layers import Layout
from r3_rl.policy.routing import runs_of

_VIT, _LATENT = -1, -2
_ROUND = 64
_LEAST_TOKENS = 512
"""From so many understanding tokens on they are a multiple of _ROUND, where there is padding to make them so."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TextBlock:
    """Token ids with begin and end tokens where they belong."""

    ids: Sequence[int]
    num_scored: int = 0
    """Logits are computed at the first so many tokens; token i predicts ids[i + 1]."""
    last: bool = False
    """Nothing follows in the row: tokens that predict no other are not read."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LookBlock:
    """An image for the understanding tower."""

    patches: Tensor
    """float32 [T, patch * patch * 3]."""
    grid: tuple[int, int]
    """Patches high, patches wide."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentBlock:
    """Latent tokens, clean (an image of the context, t = 0) or noisy (being denoised)."""

    tokens: Tensor
    """float32 [M, C]."""
    grid: tuple[int, int]
    """Tokens high, tokens wide."""
    time: float = 0.0
    noisy: bool = False


Block = TextBlock | LookBlock | LatentBlock


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """A flat batch: understanding tokens of all rows first, then latent tokens of all rows."""

    layout: Layout
    token_ids: Tensor
    """int64 [U] ids of the understanding tokens (0 stands in for ViT tokens)."""
    vit_index: Tensor
    """int64, places of the ViT tokens among the understanding tokens."""
    looks: tuple[LookBlock, ...]
    latents: Tensor
    """float32 [G, C] all latent tokens."""
    latent_times: Tensor
    """float32 [G]."""
    latent_position_ids: Tensor
    """int64 [G] rows of the latent position table."""
    noisy_index: Tensor
    """int64, the noisy ones among the G latent tokens, in row order."""
    score_index: Tensor
    """int64, understanding tokens at which logits are wanted."""
    targets: Tensor
    """int64, the ids they should predict."""
    valid: Tensor | None
    """bool [B, Q] no padding; None when there is none."""
    next_position: Tensor
    """int64 [B] rotary position after the row's last block."""

    def with_latents(self, latents: Tensor, times: Tensor) -> Packed:
        """The same layout with other latent tokens [G, C] and times [G] (the next denoising step)."""
        return replace(self, latents=latents, latent_times=times)


@dataclass(kw_only=True, eq=False)
class _Grid:
    """Padded [B, Q] tables while packing."""

    ids: np.ndarray
    position: np.ndarray
    block: np.ndarray
    causal: np.ndarray
    hidden: np.ndarray
    scored: np.ndarray
    target: np.ndarray


def num_tokens(block: Block) -> int:
    """Tokens that a block takes, begin and end of image included."""
    if isinstance(block, TextBlock):
        return block.num_scored if block.last else len(block.ids)
    return (block.patches if isinstance(block, LookBlock) else block.tokens).shape[0] + 2


def pack(
    rows: Sequence[Sequence[Block]],
    config: BagelConfig,
    *,
    start: Sequence[int] | None = None,
    tasks: Sequence[str] = (),
    device: torch.device | str = "cpu",
) -> Packed:
    """One row of blocks a sequence -> a flat batch. `start`: rotary position of each row's first block (default 0);
    `tasks`: of the rows, for adapters that are routed by task."""
    special = config.special_token_ids
    assert special is not None, "special token ids are resolved when the model is loaded"
    lengths = [sum(num_tokens(b) for b in row) for row in rows]
    grid = _empty_grid(len(rows), max(lengths))
    looks: list[LookBlock] = []
    latents: list[LatentBlock] = []
    ends = []
    for r, row in enumerate(rows):
        column, position = 0, int(start[r]) if start is not None else 0
        for b, block in enumerate(row):
            stop = column + num_tokens(block)
            span = (r, slice(column, stop))
            grid.block[span] = b
            if isinstance(block, TextBlock):
                _place_text(grid, r, column, position, block)
                position += stop - column
            else:
                look = isinstance(block, LookBlock)
                grid.ids[span] = _VIT if look else _LATENT
                grid.ids[r, column], grid.ids[r, stop - 1] = special["start_of_image"], special["end_of_image"]
                grid.position[span] = position
                if isinstance(block, LookBlock):
                    looks.append(block)
                else:
                    latents.append(block)
                    grid.hidden[span] = block.noisy
                position += 0 if isinstance(block, LatentBlock) and block.noisy else 1
            column = stop
        ends.append(position)
    return _flatten(grid, looks, latents, ends, config, tasks, torch.device(device))


def _empty_grid(rows: int, columns: int) -> _Grid:
    shape = (rows, columns)
    return _Grid(
        ids=np.zeros(shape, np.int64),
        position=np.zeros(shape, np.int64),
        block=np.full(shape, -1, np.int64),
        causal=np.zeros(shape, bool),
        hidden=np.zeros(shape, bool),
        scored=np.zeros(shape, bool),
        target=np.zeros(shape, np.int64),
    )


def _place_text(grid: _Grid, r: int, column: int, position: int, block: TextBlock) -> None:
    n = num_tokens(block)
    ids = np.asarray(block.ids, np.int64)
    grid.ids[r, column : column + n] = ids[:n]
    grid.position[r, column : column + n] = np.arange(position, position + n)
    grid.causal[r, column : column + n] = True
    if block.num_scored:
        grid.scored[r, column : column + block.num_scored] = True
        grid.target[r, column : column + block.num_scored] = ids[1 : block.num_scored + 1]


def _flatten(
    grid: _Grid,
    looks: list[LookBlock],
    latents: list[LatentBlock],
    ends: list[int],
    config: BagelConfig,
    tasks: Sequence[str],
    device: torch.device,
) -> Packed:
    valid = grid.block >= 0
    is_latent = grid.ids == _LATENT
    understanding = np.flatnonzero(valid & ~is_latent)
    understanding = _rounded(understanding, np.flatnonzero(~valid))
    generation = np.flatnonzero(is_latent)
    slot = np.concatenate([understanding, generation])
    whole = bool(valid.all())
    trivial = whole and (len(generation) == 0 or len(understanding) == 0)
    ids = grid.ids.reshape(-1)[understanding]
    scored = np.flatnonzero(grid.scored.reshape(-1)[understanding])
    noisy = np.concatenate([np.full(b.tokens.shape[0], b.noisy) for b in latents]) if latents else np.zeros(0, bool)

    def on(x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(device)

    layout = Layout(
        position=on(grid.position.reshape(-1)[slot]),
        num_understanding=len(understanding),
        slot=None if trivial else on(slot),
        num_rows=valid.shape[0],
        num_columns=valid.shape[1],
        mask=_mask(grid, valid, device),
        tasks=(runs_of(tasks, understanding // valid.shape[1]), runs_of(tasks, generation // valid.shape[1])),
    )
    channels = config.latent_channels
    return Packed(
        layout=layout,
        token_ids=on(np.maximum(ids, 0)),
        vit_index=on(np.flatnonzero(ids == _VIT)),
        looks=tuple(looks),
        latents=torch.cat([b.tokens.to(device) for b in latents])
        if latents
        else torch.zeros(0, channels, device=device),
        latent_times=on(
            np.concatenate([np.full(b.tokens.shape[0], b.time, np.float32) for b in latents])
            if latents
            else np.zeros(0, np.float32)
        ),
        latent_position_ids=on(
            np.concatenate([table_rows(b.grid, config.max_latent_size) for b in latents])
            if latents
            else np.zeros(0, np.int64)
        ),
        noisy_index=on(np.flatnonzero(noisy)),
        score_index=on(scored),
        targets=on(grid.target.reshape(-1)[understanding][scored]),
        valid=None if whole else on(valid),
        next_position=torch.tensor(ends, device=device),
    )


def _rounded(understanding: np.ndarray, spare: np.ndarray) -> np.ndarray:
    """With some of the padding as further tokens, which nobody looks at, to a number that comes again: for every new
    one oneDNN makes code, and keeps it (lab book, entry 29)."""
    missing = -len(understanding) % _ROUND
    if len(understanding) < _LEAST_TOKENS or len(spare) < missing:
        return understanding
    return np.concatenate([understanding, spare[:missing]])


def _mask(grid: _Grid, valid: np.ndarray, device: torch.device) -> Tensor | None:
    if (grid.block == 0).all() and not grid.causal.any():
        return None  # one image block a row: everybody sees everybody
    block = torch.from_numpy(grid.block).to(device)
    causal = torch.from_numpy(grid.causal).to(device)
    hidden = torch.from_numpy(grid.hidden).to(device)
    column = torch.arange(block.shape[1], device=device)
    query, key = block[:, :, None], block[:, None, :]
    inside = (query == key) & (~causal[:, :, None] | (column[:, None] >= column[None, :]))
    mask = ((query > key) & ~hidden[:, None, :]) | inside
    mask &= torch.from_numpy(valid).to(device)[:, None, :]
    # a padded query looks at itself, or its softmax would be 0 / 0
    return mask | torch.eye(block.shape[1], dtype=torch.bool, device=device)


def table_rows(grid: tuple[int, int], side: int) -> np.ndarray:
    """Rows r * side + c of a side x side position table for a grid of (high, wide) tokens, row-major.

    >>> table_rows((2, 3), 10).tolist()
    [0, 1, 2, 10, 11, 12]
    """
    high, wide = grid
    if high > side or wide > side:
        raise InputError(
            f"{high} x {wide} tokens do not fit the position table of {side} x {side}", hint="use a smaller image"
        )
    return (np.arange(high)[:, None] * side + np.arange(wide)[None, :]).reshape(-1)
