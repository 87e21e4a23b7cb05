"""Tokens drawn from logits and scored again: the same numbers for a text, and for an image that is made of tokens.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from r3_rl.policy.base import Sampling

_LEAST_GAP = 1e-5
"""Between logits of tokens that truncation tells apart: several times the rounding of float32."""


def row_uniforms(seeds: Sequence[int], count: int) -> Tensor:
    """float32 [B, count] in [0, 1), each row from its own seed, drawn on the CPU so that every device agrees."""
    return torch.stack([torch.rand(count, generator=torch.Generator().manual_seed(s)) for s in seeds])


def choose(logits: Tensor, sampling: Sampling, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Draws a token a row by the inverse of the cumulative distribution.

    logits [B, V], uniform [B]. Returns ids [B], their log-probs [B] under the tempered and truncated distribution,
    and with truncation the cut-offs float32 [B] (`TextSegment.cutoff`).
    """
    wide = logits.float()
    if sampling.temperature == 0:
        best = wide.argmax(-1)
        return best, wide.log_softmax(-1).gather(1, best[:, None])[:, 0], None
    wide = wide / sampling.temperature
    cutoff = None
    if sampling.top_p < 1:
        line = _line(wide, sampling.top_p)
        cutoff = line - wide.mean(-1)
        wide = wide.masked_fill(wide < line[:, None], float("-inf"))
    log_probs = wide.log_softmax(-1)
    cumulative = log_probs.exp().cumsum(-1)
    # the sum of probabilities is 1 up to rounding: scaling the draw keeps it inside
    draw = uniform[:, None] * cumulative[:, -1:]
    ids = torch.searchsorted(cumulative, draw, right=True).clamp(max=wide.shape[1] - 1)
    return ids[:, 0], log_probs.gather(1, ids)[:, 0], cutoff


def _line(wide: Tensor, top_p: float) -> Tensor:
    """Logits float32 [B] between the likeliest tokens, which together have a probability of `top_p`, and the others.

    The line is in the middle of a gap, since the logits of a replay differ in their last bits and must fall on the same
    sides; tokens with hardly a gap between them stay together. Minus infinity if all stay.
    """
    ordered = wide.sort(-1, descending=True).values
    probs = ordered.softmax(-1)
    last = (probs.cumsum(-1) - probs < top_p).sum(-1, keepdim=True) - 1  # the likeliest token always stays
    following = torch.cat([ordered[:, 1:], ordered.new_full((len(ordered), 1), float("-inf"))], 1)
    places = torch.arange(wide.shape[1], device=wide.device)
    apart = (ordered - following >= _LEAST_GAP) & (places >= last)
    cut = apart.to(torch.uint8).argmax(-1, keepdim=True)  # the first of them
    return ((ordered.gather(1, cut) + following.gather(1, cut)) / 2)[:, 0]


def token_log_probs(
    logits: Tensor, targets: Tensor, *, temperature: float = 1.0, cutoff: Tensor | None = None
) -> Tensor:
    """log softmax(z) at the targets, z = logits / temperature, with a cut-off over the tokens in play: float32 [T].

    Args:
        logits: [T, V].
        targets: int64 [T].
        temperature: > 0.
        cutoff: float32 [T] of `TextSegment`: token v is in play if z_v - mean(z) >= cutoff, or if it is the target.
            The weights that sampled have the support that was sampled from. Under other weights a token leaves or
            joins only if its own logit crosses the line: a target that grows likelier pushes nothing out, which a line
            drawn through probabilities would let it do.

    >>> token_log_probs(torch.tensor([[2.0, 2.0, -4.0]]), torch.tensor([0]), cutoff=torch.tensor([0.0])).exp()
    tensor([0.5000])
    """
    scaled = logits.float() if temperature == 1 else logits.float() / temperature
    if cutoff is not None:
        out = (scaled < (cutoff + scaled.mean(-1))[:, None]).scatter(1, targets[:, None], False)
        scaled = scaled.masked_fill(out, float("-inf"))
    return -F.cross_entropy(scaled, targets, reduction="none")
