"""Operations of a BAGEL forward pass, counted from its sizes and the tokens of each batch.

A product of [m, k] and [k, n] counts 2 m k n. Norms, rotations, softmax and the like count nothing: what is left is the
work that a machine's matrix-product speed can be held against. Shapes: U understanding tokens, G latent tokens, B rows
of Q new tokens, K cached tokens a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from r3_rl.policy.adapters import adapted_layers
from r3_rl.policy.bagel.attention import CachePart
from r3_rl.policy.bagel.config import BagelConfig, LanguageConfig
from r3_rl.policy.bagel.model import Bagel
from r3_rl.policy.bagel.packing import Packed


@dataclass(kw_only=True)
class Count:
    """Sums over forward passes (and the backward passes that follow them)."""

    flops: float = 0.0
    passes: int = 0
    tokens: int = 0
    """Understanding and latent tokens that went through the decoder."""


def layer_weights(llm: LanguageConfig) -> int:
    """Weights of one expert's matrices in one layer."""
    narrow = llm.num_key_value_heads * llm.head_dim
    wide = llm.num_attention_heads * llm.head_dim
    return llm.hidden_size * (2 * wide + 2 * narrow + 3 * llm.intermediate_size)


def adapter_weights(llm: LanguageConfig, rank: int) -> int:
    """Weights of one expert's LoRA matrices in one layer: rank * (inputs + outputs) of seven layers."""
    d, inner = llm.hidden_size, llm.intermediate_size
    narrow = llm.num_key_value_heads * llm.head_dim
    wide = llm.num_attention_heads * llm.head_dim
    return rank * (2 * (d + wide) + 2 * (d + narrow) + 3 * (d + inner))


def forward_flops(config: BagelConfig, packed: Packed, past: list[CachePart] | None) -> tuple[float, float]:
    """Operations of one pass: those of the decoder with its head, and those of the eyes (vision tower, connector)."""
    llm, vit = config.llm, config.vit
    layout = packed.layout
    num_tokens = layout.position.shape[0]
    columns = layout.num_columns + sum(part.keys[0].shape[2] for part in past or [])
    pairs = layout.num_rows * layout.num_columns * columns
    wide = llm.num_attention_heads * llm.head_dim
    decoder = llm.num_hidden_layers * (2.0 * layer_weights(llm) * num_tokens + 4.0 * wide * pairs)
    decoder += 2.0 * llm.hidden_size * llm.vocab_size * packed.score_index.shape[0]
    latent = packed.latents.shape[0] + packed.noisy_index.shape[0]
    decoder += 2.0 * llm.hidden_size * config.latent_channels * latent
    w = vit.hidden_size
    eyes = 0.0
    for look in packed.looks:
        tokens = look.patches.shape[0]
        block = 2.0 * (4 * w * w + 2 * w * vit.intermediate_size) + 4.0 * w * tokens
        ends = 2.0 * (vit.num_channels * vit.patch_size**2 * w + w * llm.hidden_size + llm.hidden_size**2)
        eyes += tokens * (vit.num_hidden_layers * block + ends)
    return decoder, eyes


@contextmanager
def counted(model: Bagel) -> Iterator[Count]:
    """Counts every pass of the model inside the block.

    A pass with gradient counts its backward too: once more for the activations' gradient, and once more again for the
    weights' where they are trained. With an adapter in place its own products are counted, three times in training, two
    of them where it is merged.
    """
    count = Count()
    adapters = adapted_layers(model)
    rank = next(iter(adapters.values())).r["default"] if adapters else 0

    def hook(module: Bagel, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        packed = args[0]
        past = args[1] if len(args) > 1 else kwargs.get("past")
        decoder, eyes = forward_flops(module.config, packed, past)
        num_tokens = packed.layout.position.shape[0]
        gradient = torch.is_grad_enabled()
        times = 1 if not gradient else 2 if adapters else 3
        count.flops += times * decoder + eyes
        if adapters:
            llm = module.config.llm
            own = 2.0 * adapter_weights(llm, rank) * llm.num_hidden_layers * num_tokens
            merged = next(iter(adapters.values())).total is not None
            count.flops += ((3 if gradient else 1) - merged) * own
        count.passes += 1
        count.tokens += num_tokens

    handle = model.register_forward_hook(hook, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()
