"""Attention over new tokens and cached ones, without copying what a group shares.

Shapes: B rows (sequences), Q new tokens a row, K cached tokens a row, H query heads, V key-value heads, R = H / V,
D channels a head. A cache part may hold fewer rows than the batch: with `share` = G, its row i serves batch rows
i*G .. i*G+G-1 (one prompt, G drafts), and the queries of those rows are stacked into one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(kw_only=True)
class CachePart:
    """Keys and values of some blocks of the context, one pair a layer."""

    keys: list[Tensor]
    """One [B / share, V, K, D] a layer, after q/k norm and rotary embedding."""
    values: list[Tensor]
    """One [B / share, V, K, D] a layer."""
    valid: Tensor | None
    """bool [B / share, K], False on padding; None when every key is valid."""
    share: int = 1
    """How many consecutive batch rows read the same row of this part."""

    def select(self, rows: Tensor) -> CachePart:
        """The part for some of the batch's rows, a row as often as it is named: finished texts leave, peers share."""
        own = rows // self.share
        return CachePart(
            keys=[_rows(k, own) for k in self.keys],
            values=[_rows(v, own) for v in self.values],
            valid=None if self.valid is None else self.valid[own],
        )


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    past: list[tuple[Tensor, Tensor, Tensor | None, int]],
    *,
    backend: str = "matmul",
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over the cached keys and the new ones.

    query [B, Q, H, D]; key and value [B, Q, V, D]; mask bool [B, Q, Q] (True: may look) or None for all;
    past: (keys, values, valid, share) of this layer. Returns [B, Q, H, D].
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
    if past and torch.is_grad_enabled():
        out = _attend_joined(q, k, v, mask, past)
        return out.view(rows, num_kv, repeat, num_new, dim).permute(0, 3, 1, 2, 4).reshape(query.shape)
    own = torch.bmm(q, k.transpose(1, 2))
    if mask is not None:
        own = own.view(rows, num_kv, repeat, num_new, num_new) + _bias(mask, own.dtype)[:, None, None]
        own = own.view(rows * num_kv, repeat * num_new, num_new)
    if not past:
        out = torch.bmm(own.softmax(-1), v)
    else:
        scores = [_scores_of_part(q, keys, valid, share) for keys, _, valid, share in past]
        weights = torch.cat([*scores, own], dim=-1).softmax(-1).split([s.shape[-1] for s in scores] + [num_new], dim=-1)
        out = weights[-1] * v if num_new == 1 else torch.bmm(weights[-1], v)
        for weight, (_, values, _, share) in zip(weights[:-1], past, strict=True):
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
    past: list[tuple[Tensor, Tensor, Tensor | None, int]],
) -> Tensor:
    """`attend` with a backward pass to come: joining keys before the product, shared ones repeated for every row, takes
    fewer passes over scores than joining scores. q [B V, R Q, D], k and v [B V, Q, D] -> [B V, R Q, D]."""
    num_kv, num_new = past[0][0].shape[1], k.shape[1]
    rows = k.shape[0] // num_kv
    keys = torch.cat([*(_repeated(keys, share).flatten(0, 1) for keys, _, _, share in past), k], 1)
    values = torch.cat([*(_repeated(values, share).flatten(0, 1) for _, values, _, share in past), v], 1)
    scores = torch.bmm(q, keys.transpose(1, 2))
    if mask is not None or any(valid is not None for _, _, valid, _ in past):
        looked = [
            keys.new_ones(rows, part.shape[2], dtype=torch.bool) if valid is None else _repeated(valid, share)
            for part, _, valid, share in past
        ]
        own = keys.new_ones(rows, num_new, num_new, dtype=torch.bool) if mask is None else mask
        bias = _bias(torch.cat([*(x[:, None].expand(-1, num_new, -1) for x in looked), own], 2), scores.dtype)
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


def attend_cached(query: Tensor, past: list[tuple[Tensor, Tensor, Tensor | None, int]]) -> Tensor:
    """`attend` for one new token a row whose own key and value lie in `past` already: [B, H, D] -> [B, H, D]."""
    rows, num_heads, dim = query.shape
    num_kv = past[0][0].shape[1]
    q = (query * dim**-0.5).view(rows * num_kv, num_heads // num_kv, dim)
    scores = [_scores_of_part(q, keys, valid, share) for keys, _, valid, share in past]
    weights = torch.cat(scores, dim=-1).softmax(-1).split([s.shape[-1] for s in scores], dim=-1)
    parts = [
        _unstack(torch.bmm(_stack(weight, num_kv, share), values.flatten(0, 1)), num_kv, share)
        for weight, (_, values, _, share) in zip(weights, past, strict=True)
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


def _scores_of_part(q: Tensor, keys: Tensor, valid: Tensor | None, share: int) -> Tensor:
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
    past: list[tuple[Tensor, Tensor, Tensor | None, int]],
) -> Tensor:
    """The same through torch's fused kernel: shared keys are expanded, which costs memory but no score matrix."""
    rows, num_new = query.shape[:2]
    keys, values, masks = [], [], []
    for k, v, valid, share in past:
        keys.append(k.repeat_interleave(share, 0) if share > 1 else k)
        values.append(v.repeat_interleave(share, 0) if share > 1 else v)
        seen = k.new_ones(k.shape[0], k.shape[2], dtype=torch.bool) if valid is None else valid
        seen = seen.repeat_interleave(share, 0) if share > 1 else seen
        masks.append(seen[:, None, :].expand(rows, num_new, -1))
    masks.append(mask if mask is not None else query.new_ones(1, 1, 1, dtype=torch.bool).expand(rows, num_new, num_new))
    everything = mask is None and all(valid is None for _, _, valid, _ in past)
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
