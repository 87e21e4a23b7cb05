"""The mixture-of-transformers decoder: one attention over all tokens, every other operation chosen by expert.

Text, special and ViT tokens belong to the understanding expert (plain names); latent tokens to the generation expert
(names with `_moe_gen`), which is None if the experts are shared. Tokens of a batch lie flat, all understanding tokens
first, so that an expert's share is a slice: no padding is ever multiplied by a weight matrix. Shapes: N tokens, D
channels, H heads, B rows, Q tokens a row. Module names are those of the released checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from r3_rl.policy.bagel.attention import CachePart, Seen, attend
from r3_rl.policy.bagel.config import LanguageConfig
from r3_rl.policy.bagel.kernels import rms_norm, rotate
from r3_rl.policy.linear import Linear
from r3_rl.policy.routing import Runs, through


@dataclass(kw_only=True)
class Layout:
    """Where each of the N flat tokens stands."""

    position: Tensor
    """int64 [N] rotary position (all tokens of an image share one)."""
    num_understanding: int
    """The first so many tokens go through the understanding expert, the rest through the generation expert."""
    slot: Tensor | None
    """int64 [N] place in the padded [B * Q] grid; None when flat order is grid order."""
    num_rows: int
    num_columns: int
    mask: Tensor | None
    """bool [B, Q, Q], who may look at whom among the new tokens; None when everybody may."""
    tasks: tuple[Runs, Runs] = ((), ())
    """Of the understanding tokens and of the rest; empty where no adapter is routed by task."""

    @property
    def all_tasks(self) -> Runs:
        """Of all tokens in order."""
        return self.tasks[0] + self.tasks[1]

    def to_grid(self, x: Tensor) -> Tensor:
        """[N, ...] -> [B, Q, ...], zeros on padding."""
        shape = (self.num_rows, self.num_columns, *x.shape[1:])
        if self.slot is None:
            return x.view(shape)
        grid = x.new_zeros(self.num_rows * self.num_columns, *x.shape[1:])
        return grid.index_copy(0, self.slot, x).view(shape)

    def to_flat(self, grid: Tensor) -> Tensor:
        """[B, Q, ...] -> [N, ...]."""
        flat = grid.reshape(self.num_rows * self.num_columns, *grid.shape[2:])
        return flat if self.slot is None else flat.index_select(0, self.slot)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def by_expert(x: Tensor, layout: Layout, understanding: nn.Module, generation: nn.Module | None) -> Tensor:
    """Each token through its own expert's module, or all through the only one; one without tokens is not called."""
    num_understanding, (of_first, of_second) = layout.num_understanding, layout.tasks
    if generation is None:
        return _through(understanding, x, layout.all_tasks)
    if num_understanding == x.shape[0]:
        return _through(understanding, x, of_first)
    if num_understanding == 0:
        return _through(generation, x, of_second)
    # split, not two slices: its backward is one concatenation instead of two zero-filled copies
    first, second = x.split([num_understanding, x.shape[0] - num_understanding])
    return torch.cat([_through(understanding, first, of_first), _through(generation, second, of_second)])


def _through(module: nn.Module, x: Tensor, tasks: Runs) -> Tensor:
    return module(x, tasks) if isinstance(module, MLP) else through(module, x, tasks)


def rotary_tables(position: Tensor, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin [N, 1, dim / 2], frequencies theta^(-2i/dim), in float32."""
    frequency = theta ** (-torch.arange(0, dim, 2, device=position.device, dtype=torch.float32) / dim)
    angle = (position.float()[:, None] * frequency)[:, None]
    return angle.cos(), angle.sin()


class Attention(nn.Module):
    """q, k, v (with bias), q/k norms and o by expert; keys of both experts share one attention and one cache."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        d, hd = config.hidden_size, config.head_dim
        wide, narrow = config.num_attention_heads * hd, config.num_key_value_heads * hd
        self.head_dim = hd
        for suffix in ("", "_moe_gen"):
            absent = bool(suffix) and config.shared_experts
            setattr(self, f"q_proj{suffix}", None if absent else Linear(d, wide, bias=True))
            setattr(self, f"k_proj{suffix}", None if absent else Linear(d, narrow, bias=True))
            setattr(self, f"v_proj{suffix}", None if absent else Linear(d, narrow, bias=True))
            setattr(self, f"o_proj{suffix}", None if absent else Linear(wide, d, bias=False))
            setattr(self, f"q_norm{suffix}", None if absent else RMSNorm(hd, config.rms_norm_eps))
            setattr(self, f"k_norm{suffix}", None if absent else RMSNorm(hd, config.rms_norm_eps))

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        rotary: tuple[Tensor, Tensor],
        past: list[Seen],
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [N, D] -> output [N, D] and the new keys and values [B, Q, V, head_dim]."""
        q = by_expert(x, layout, self.q_proj, self.q_proj_moe_gen).view(x.shape[0], -1, self.head_dim)
        k = by_expert(x, layout, self.k_proj, self.k_proj_moe_gen).view(x.shape[0], -1, self.head_dim)
        v = by_expert(x, layout, self.v_proj, self.v_proj_moe_gen).view(x.shape[0], -1, self.head_dim)
        q = rotate(by_expert(q, layout, self.q_norm, self.q_norm_moe_gen), *rotary)
        k = rotate(by_expert(k, layout, self.k_norm, self.k_norm_moe_gen), *rotary)
        k, v = layout.to_grid(k), layout.to_grid(v)
        out = attend(layout.to_grid(q), k, v, layout.mask, past, backend=backend)
        out = layout.to_flat(out).reshape(x.shape[0], -1)
        return by_expert(out, layout, self.o_proj, self.o_proj_moe_gen), k, v


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, tasks: Runs = ()) -> Tensor:
        inner = F.silu(through(self.gate_proj, x, tasks)) * through(self.up_proj, x, tasks)
        return through(self.down_proj, inner, tasks)


class DecoderLayer(nn.Module):
    """Pre-norm attention and MLP, both by expert."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        d, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.mlp_moe_gen = None if config.shared_experts else MLP(config)
        self.input_layernorm = RMSNorm(d, eps)
        self.input_layernorm_moe_gen = None if config.shared_experts else RMSNorm(d, eps)
        self.post_attention_layernorm = RMSNorm(d, eps)
        self.post_attention_layernorm_moe_gen = None if config.shared_experts else RMSNorm(d, eps)

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        rotary: tuple[Tensor, Tensor],
        past: list[Seen],
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        h = by_expert(x, layout, self.input_layernorm, self.input_layernorm_moe_gen)
        h, keys, values = self.self_attn(h, layout, rotary, past, backend)
        x = x + h
        h = by_expert(x, layout, self.post_attention_layernorm, self.post_attention_layernorm_moe_gen)
        return x + by_expert(h, layout, self.mlp, self.mlp_moe_gen), keys, values


@dataclass(kw_only=True)
class Decoded:
    """What the decoder returns."""

    hidden: Tensor
    """[N, D] after the final norm."""
    part: CachePart | None
    """Keys and values of the new tokens, when asked for."""
    layers: list[Tensor] | None = None
    """[N, D] after each layer, when asked for."""


class Decoder(nn.Module):
    """Token embedding, layers, final norms."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm_moe_gen = None if config.shared_experts else RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.backend = "matmul"
        self.gradient_checkpointing = False

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        past: list[CachePart] | None = None,
        *,
        keep: bool = False,
        valid: Tensor | None = None,
        trace: bool = False,
    ) -> Decoded:
        """x [N, D] embedded tokens; past: cache parts in order; keep: return the new keys; valid [B, Q] for them."""
        past = past or []
        rotary = rotary_tables(layout.position, self.config.head_dim, self.config.rope_theta)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        layers: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            seen = [part.layer(i) for part in past]
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x, k, v = checkpoint(layer, x, layout, rotary, seen, self.backend, use_reentrant=False)
            else:
                x, k, v = layer(x, layout, rotary, seen, self.backend)
            if keep:
                keys.append(k.transpose(1, 2))
                values.append(v.transpose(1, 2))
            if trace:
                layers.append(x)
        hidden = by_expert(x, layout, self.norm, self.norm_moe_gen)
        part = CachePart(keys=keys, values=values, valid=valid) if keep else None
        return Decoded(hidden=hidden, part=part, layers=layers if trace else None)


class LanguageModel(nn.Module):
    """The decoder and its untied head, named as in the release."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
