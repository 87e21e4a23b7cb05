"""Attention over new tokens and cached ones, what a group shares cached once.

Shapes: B rows (sequences), Q new tokens a row, K cached tokens a row, H query heads, V key-value heads, R = H / V,
D channels a head, P rows of a cache part. A part may hold fewer rows than the batch. With `share` = G its row i serves
batch rows i*G .. i*G+G-1 (one prompt, G drafts), and the queries of those rows are stacked into one matrix product.
With `owner` it serves groups of any size and order, and its rows are gathered when they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class Seen(NamedTuple):
    """What one layer sees of a cache part; the fields are those of `CachePart`."""

    keys: Tensor
    values: Tensor
    valid: Tensor | None
    share: int = 1
    owner: Tensor | None = None

    def by_row(self, x: Tensor) -> Tensor:
        """Keys or values [P, ...] -> [B, ...]."""
        if self.owner is not None:
            return _rows(x, self.owner)
        return _repeated(x, self.share)

    def mask(self, rows: int) -> Tensor:
        """bool [B, K] for B = `rows`: True for keys that a row may look at."""
        if self.valid is None:
            return self.keys.new_ones(rows, self.keys.shape[2], dtype=torch.bool)
        return self.valid if self.owner is not None else _repeated(self.valid, self.share)


@dataclass(frozen=True, kw_only=True, eq=False)
class CachePart:
    """Keys and values of some blocks of the context, one pair a layer."""

    keys: list[Tensor]
    """One [P, V, K, D] a layer, after q/k norm and rotary embedding."""
    values: list[Tensor]
    """One [P, V, K, D] a layer."""
    valid: Tensor | None
    """bool [P, K], with `owner` [B, K]: False on padding. None when every key is valid."""
    share: int = 1
    """How many consecutive batch rows read the same row of this part."""
    owner: Tensor | None = None
    """int64 [B], the row of this part that each batch row reads; None when consecutive rows share."""

    def layer(self, i: int) -> Seen:
        """What layer i sees."""
        return Seen(self.keys[i], self.values[i], self.valid, self.share, self.owner)

    def read_by(self, owner: Sequence[int]) -> CachePart:
        """This part, as it was encoded (`share` 1, no `owner`), for a batch whose row b reads row owner[b] of it, or
        nothing of it where owner[b] is -1. Nothing is copied."""
        first, count = owner[0], max(owner[-1] - owner[0] + 1, 1)
        share = max(len(owner) // count, 1)
        if first >= 0 and all(own == first + row // share for row, own in enumerate(owner)):
            if count == self.keys[0].shape[0]:  # not sliced: a slice's backward pass is a zero-filled copy
                return replace(self, share=share)
            some = slice(first, first + count)
            return CachePart(
                keys=[k[some] for k in self.keys],
                values=[v[some] for v in self.values],
                valid=None if self.valid is None else self.valid[some],
                share=share,
            )
        own = torch.tensor(owner, device=self.keys[0].device)
        index, valid = own.clamp(min=0), self.valid
        if valid is not None:
            valid = valid[index]
        if min(owner) < 0:
            whole = index.new_ones(len(owner), self.keys[0].shape[2], dtype=torch.bool) if valid is None else valid
            valid = whole & (own >= 0)[:, None]
        return CachePart(keys=self.keys, values=self.values, valid=valid, owner=index)

    def select(self, rows: Tensor) -> CachePart:
        """Copies of what some of the batch's rows read, a row as often as it is named: finished texts leave."""
        own = rows // self.share if self.owner is None else self.owner[rows]
        valid = self.valid if self.valid is None else self.valid[own if self.owner is None else rows]
        return CachePart(
            keys=[_rows(k, own) for k in self.keys], values=[_rows(v, own) for v in self.values], valid=valid
        )


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    past: list[Seen],
    *,
    backend: str = "matmul",
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over the cached keys and the new ones.

    query [B, Q, H, D]; key and value [B, Q, V, D]; mask bool [B, Q, Q] (True: may look) or None for all;
    past: the cache parts as this layer sees them. Returns [B, Q, H, D].
    """
    rows, num_new, num_heads, dim = query.shape
    num_kv = key.shape[2]
    if backend == "sdpa":
        return _attend_sdpa(query, key, value, mask, past)
    repeat = num_heads // num_kv
    # [B V, R Q, D]: the query heads of one key-value head are stacked as if they were more tokens. Rows and heads are
    # one dimension, because at the embedded size the cost of a four-dimensional product lies in preparing it
    q = (query * dim**-0.5).view(rows, num_new, num_kv, repeat, dim).permute(0, 2, 3, 1, 4)
    q = q.reshape(rows * num_kv, repeat * num_new, dim)
    k, v = (x.transpose(1, 2).reshape(rows * num_kv, num_new, dim) for x in (key, value))
    if past and (torch.is_grad_enabled() or any(part.owner is not None for part in past)):
        out = _attend_joined(q, k, v, mask, past)
        return out.view(rows, num_kv, repeat, num_new, dim).permute(0, 3, 1, 2, 4).reshape(query.shape)
    own = torch.bmm(q, k.transpose(1, 2))
    if mask is not None:
        own = own.view(rows, num_kv, repeat, num_new, num_new) + _bias(mask, own.dtype)[:, None, None]
        own = own.view(rows * num_kv, repeat * num_new, num_new)
    if not past:
        out = torch.bmm(own.softmax(-1), v)
    else:
        scores = [_scores_of_part(q, part) for part in past]
        weights = torch.cat([*scores, own], dim=-1).softmax(-1).split([s.shape[-1] for s in scores] + [num_new], dim=-1)
        out = weights[-1] * v if num_new == 1 else torch.bmm(weights[-1], v)
        for weight, (_, values, _, share, _) in zip(weights[:-1], past, strict=True):
            if share == 1:
                out = torch.baddbmm(out, weight, values.flatten(0, 1))
            else:
                out = out + _unstack(torch.bmm(_stack(weight, num_kv, share), values.flatten(0, 1)), num_kv, share)
    out = out.view(rows, num_kv, repeat, num_new, dim).permute(0, 3, 1, 2, 4)
    return out.reshape(rows, num_new, num_heads, dim)


def _attend_joined(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    past: list[Seen],
) -> Tensor:
    """`attend` with a backward pass to come, or over groups of unequal size: joining keys before the product, shared
    ones repeated for every row, takes fewer passes over scores than joining scores. q [B V, R Q, D], k and v
    [B V, Q, D] -> [B V, R Q, D]."""
    num_kv, num_new = past[0].keys.shape[1], k.shape[1]
    rows = k.shape[0] // num_kv
    keys = torch.cat([*(part.by_row(part.keys).flatten(0, 1) for part in past), k], 1)
    values = torch.cat([*(part.by_row(part.values).flatten(0, 1) for part in past), v], 1)
    scores = torch.bmm(q, keys.transpose(1, 2))
    if mask is not None or any(part.valid is not None for part in past):
        looked = [part.mask(rows)[:, None].expand(-1, num_new, -1) for part in past]
        own = keys.new_ones(rows, num_new, num_new, dtype=torch.bool) if mask is None else mask
        bias = _bias(torch.cat([*looked, own], 2), scores.dtype)
        scores = (scores.view(rows, num_kv, -1, *bias.shape[1:]) + bias[:, None, None]).view(scores.shape)
    return torch.bmm(scores.softmax(-1), values)


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows]; where a row is named twice its gradients are added in one order, so that a run can be repeated: indexing
    adds on a CPU as its threads come, index_select on a GPU (torch's page of `use_deterministic_algorithms`)."""
    return x.index_select(0, rows) if x.device.type == "cpu" else x[rows]


def _repeated(x: Tensor, share: int) -> Tensor:
    return x if share == 1 else x.repeat_interleave(share, 0)


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where True, minus infinity elsewhere: adding it has no backward pass, unlike filling."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def attend_cached(query: Tensor, past: list[Seen]) -> Tensor:
    """`attend` for one new token a row whose own key and value lie in `past` already: [B, H, D] -> [B, H, D]."""
    rows, num_heads, dim = query.shape
    num_kv = past[0].keys.shape[1]
    q = (query * dim**-0.5).view(rows * num_kv, num_heads // num_kv, dim)
    scores = [_scores_of_part(q, part) for part in past]
    weights = torch.cat(scores, dim=-1).softmax(-1).split([s.shape[-1] for s in scores], dim=-1)
    parts = [
        _unstack(torch.bmm(_stack(weight, num_kv, share), values.flatten(0, 1)), num_kv, share)
        for weight, (_, values, _, share, _) in zip(weights, past, strict=True)
    ]
    return reduce(torch.add, parts).view(query.shape)


def _stack(x: Tensor, num_kv: int, share: int) -> Tensor:
    """[B V, M, E] -> [B / share V, share M, E]."""
    if share == 1:
        return x
    m, e = x.shape[1:]
    return x.view(-1, share, num_kv, m, e).transpose(1, 2).reshape(-1, share * m, e)


def _unstack(x: Tensor, num_kv: int, share: int) -> Tensor:
    """[B / share V, share M, E] -> [B V, M, E]."""
    if share == 1:
        return x
    m, e = x.shape[1] // share, x.shape[2]
    return x.view(-1, num_kv, share, m, e).transpose(1, 2).reshape(-1, m, e)


def _scores_of_part(q: Tensor, part: Seen) -> Tensor:
    keys, _, valid, share, _ = part
    num_kv = keys.shape[1]
    scores = torch.bmm(_stack(q, num_kv, share), keys.flatten(0, 1).transpose(1, 2))
    if valid is not None:
        hidden = ~valid[:, None, None, :]
        scores = scores.unflatten(0, (-1, num_kv)).masked_fill(hidden, float("-inf")).flatten(0, 1)
    return _unstack(scores, num_kv, share)


def _attend_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    past: list[Seen],
) -> Tensor:
    """The same through torch's fused kernel: shared keys are repeated for the rows that read them, one layer at a time,
    which costs memory but no score matrix."""
    rows, num_new = query.shape[:2]
    keys, values, masks = [], [], []
    for part in past:
        keys.append(part.by_row(part.keys))
        values.append(part.by_row(part.values))
        masks.append(part.mask(rows)[:, None, :].expand(rows, num_new, -1))
    masks.append(mask if mask is not None else query.new_ones(1, 1, 1, dtype=torch.bool).expand(rows, num_new, num_new))
    everything = mask is None and all(part.valid is None for part in past)
    k, v = torch.cat([*keys, key.transpose(1, 2)], 2), torch.cat([*values, value.transpose(1, 2)], 2)
    repeat = query.shape[2] // key.shape[2]
    if not everything and repeat > 1:
        # on a GPU no fused kernel takes a mask and grouped heads at once: torch would write out the score matrix
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    out = scaled_dot_product_attention(
        query.transpose(1, 2),
        k,
        v,
        attn_mask=None if everything else torch.cat(masks, -1)[:, None],
        enable_gqa=everything and repeat > 1,
    )
    return out.transpose(1, 2)
