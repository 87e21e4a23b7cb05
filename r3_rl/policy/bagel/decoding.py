"""One more token a row: the understanding expert's layers without what a packed batch needs.

The numbers are those of `Bagel.forward` on a batch of one token a row. At the embedded size such a pass costs more in
preparing its operations than in doing them, so here they are few: the norms and rotations of all heads in one, and for
small models on a CPU the matrices of a layer that read the same side by side. Shapes: B rows, H query heads, V
key-value heads, D channels a head, N channels, I channels inside the MLP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from r3_rl.policy.bagel.attention import CachePart, Seen, attend, attend_cached
from r3_rl.policy.bagel.encoder import Encoded
from r3_rl.policy.bagel.kernels import rms_norm
from r3_rl.policy.bagel.layers import DecoderLayer, RMSNorm, rotary_tables
from r3_rl.policy.bagel.model import Bagel
from r3_rl.policy.linear import linear
from r3_rl.policy.lora import AdaptedLinear
from r3_rl.policy.routing import through

_MOST_COPIED_BYTES = 256 * 2**20
"""Above this the matrices are no longer copied: reading them is then the cost of a token, not preparing to."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layer:
    """A layer's products, and its norms of query and key heads [H + V, D]."""

    module: DecoderLayer
    qkv: Callable[[Tensor], Tensor]
    """[B, N] -> [B, (H + 2 V) D]."""
    out: Callable[[Tensor], Tensor]
    """[B, H D] -> [B, N]."""
    mlp: Callable[[Tensor], Tensor]
    """[B, N] -> [B, N]."""
    head_norm: Tensor


class Decoding:
    """A batch of texts being written after their contexts, with room for the keys of `limit` new tokens a row.

    Weights are taken over when it is made: make a new one after an update. `task`: of all the texts, where an adapter
    is routed by task.
    """

    def __init__(self, model: Bagel, past: Encoded, limit: int, *, task: str = "") -> None:
        self.model, self.past = model, past
        self.own, self.length = _room(model, past.next_position.shape[0], limit), 0
        self.layers = _layers(model, task)

    def select(self, rows: Tensor) -> None:
        """Some rows stay."""
        self.own, self.past = self.own.select(rows), self.past.select(rows)

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """Reads one token a row after the context and the tokens before it: ids int64 [B] -> [B, vocabulary]."""
        decoder, llm = self.model.decoder, self.model.config.llm
        num_heads, num_kv, dim = llm.num_attention_heads, llm.num_key_value_heads, llm.head_dim
        x = decoder.embed_tokens(ids)
        position = self.past.next_position + self.length
        cos, sin = (table.to(x.dtype) for table in rotary_tables(position, dim, llm.rope_theta))
        cos, sin = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
        for i, layer in enumerate(self.layers):
            h = _normed(x, layer.module.input_layernorm)
            qk, v = layer.qkv(h).view(-1, num_heads + 2 * num_kv, dim).split((num_heads + num_kv, num_kv), 1)
            qk = _head_normed(qk, layer.head_norm, llm.rms_norm_eps)
            qk = torch.addcmul(qk * cos, qk.roll(dim // 2, -1), sin)
            q, k = qk.split((num_heads, num_kv), 1)
            x = x + layer.out(self._attend(i, q, k, v))
            x = x + layer.mlp(_normed(x, layer.module.post_attention_layernorm))
        self.length += 1
        return self.model.language_model.lm_head(_normed(x, decoder.norm))  # type: ignore[no-any-return]

    def _attend(self, i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, H, D], k and v [B, V, D] -> [B, H D]; k and v go into the cache."""
        keys, values = self.own.keys[i], self.own.values[i]
        keys[:, :, self.length], values[:, :, self.length] = k, v
        seen = [part.layer(i) for part in self.past.parts]
        if self.model.decoder.backend == "matmul":
            end = self.length + 1
            return attend_cached(q, [*seen, Seen(keys[:, :, :end], values[:, :, :end], None)]).flatten(1)
        if self.length:
            seen.append(Seen(keys[:, :, : self.length], values[:, :, : self.length], None))
        return attend(q[:, None], k[:, None], v[:, None], None, seen, backend=self.model.decoder.backend).flatten(1)


def _room(model: Bagel, num_rows: int, columns: int) -> CachePart:
    """Keys and values yet to be written."""
    llm, weight = model.config.llm, model.llm2vae.weight
    shape = (num_rows, llm.num_key_value_heads)
    depth = range(llm.num_hidden_layers)
    # keys lie as the columns that queries are multiplied with
    return CachePart(
        keys=[weight.new_zeros(*shape, llm.head_dim, columns).transpose(2, 3) for _ in depth],
        values=[weight.new_zeros(*shape, columns, llm.head_dim) for _ in depth],
        valid=None,
    )


def _layers(model: Bagel, task: str) -> list[_Layer]:
    layers, llm = list(model.decoder.layers), model.config.llm
    norms = [_head_norm(layer, llm.num_attention_heads, llm.num_key_value_heads) for layer in layers]
    if model.device.type == "cpu":
        # an adapter beside the weights has products of its own
        weights = [[_weight(m, task) for m in _linears(layer)] for layer in layers]
        plain = [w for of_layer in weights for w in of_layer if w is not None]
        if len(plain) == sum(map(len, weights)) and sum(w.nbytes for w in plain) <= _MOST_COPIED_BYTES:
            return [_copied(layer, norm, task) for layer, norm in zip(layers, norms, strict=True)]
    return [_called(layer, norm, task) for layer, norm in zip(layers, norms, strict=True)]


def _weight(layer: Any, task: str) -> Tensor | None:
    return layer.plain_weight(task) if isinstance(layer, AdaptedLinear) else layer.weight


def _linears(layer: DecoderLayer) -> list[Any]:
    attention, mlp = layer.self_attn, layer.mlp
    projections = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    return [*projections, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def _called(layer: DecoderLayer, head_norm: Tensor, task: str) -> _Layer:
    """The layer's own modules."""
    attention = layer.self_attn

    def qkv(h: Tensor) -> Tensor:
        tasks = ((task, len(h)),)
        return torch.cat([through(m, h, tasks) for m in (attention.q_proj, attention.k_proj, attention.v_proj)], -1)

    return _Layer(
        module=layer,
        qkv=qkv,
        out=lambda h: through(attention.o_proj, h, ((task, len(h)),)),
        mlp=lambda h: layer.mlp(h, ((task, len(h)),)),
        head_norm=head_norm,
    )


def _copied(layer: DecoderLayer, head_norm: Tensor, task: str) -> _Layer:
    """Matrices that read the same, side by side in copies."""
    linears = _linears(layer)
    q, k, v, o, gate, up, down = (_weight(m, task) for m in linears)
    weight, bias = torch.cat([q, k, v]), torch.cat([m.bias for m in linears[:3]])
    gate_up = torch.cat([gate, up])

    def mlp(h: Tensor) -> Tensor:
        g, u = linear(h, gate_up).chunk(2, -1)
        return linear(F.silu(g).mul_(u), down)

    return _Layer(
        module=layer,
        qkv=lambda h: linear(h, weight, bias),
        out=lambda h: linear(h, o),
        mlp=mlp,
        head_norm=head_norm,
    )


def _head_norm(layer: DecoderLayer, num_heads: int, num_kv: int) -> Tensor:
    attention = layer.self_attn
    return torch.cat([attention.q_norm.weight.expand(num_heads, -1), attention.k_norm.weight.expand(num_kv, -1)])


def _normed(x: Tensor, norm: RMSNorm) -> Tensor:
    if x.dtype == torch.float32:
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)
    return rms_norm(x, norm.weight, norm.eps)


def _head_normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Norms of query and key heads at once: x [B, H + V, D]."""
    if x.dtype == torch.float32:
        return F.rms_norm(x, x.shape[-1:], None, eps).mul_(weight)
    return rms_norm(x, weight, eps)
