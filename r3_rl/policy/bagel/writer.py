"""Texts sampled for a batch of contexts: static cache, rows seeded apart, finished rows leave.

Shapes: B rows, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from r3_rl.policy.bagel.decoding import Decoding
from r3_rl.policy.bagel.encoder import encode
from r3_rl.policy.bagel.model import Bagel
from r3_rl.policy.bagel.reader import Reader
from r3_rl.policy.base import Sampling
from r3_rl.types import Context, TextSegment

_LEAST_GAP = 1e-5
"""Between logits of tokens that truncation tells apart: several times the rounding of float32."""


@torch.no_grad()
def write(
    model: Bagel, reader: Reader, contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[int]
) -> list[TextSegment]:
    """One text a context. The first token fed is bos at the context's next position; eos ends a text."""
    num_rows, limit = len(contexts), sampling.max_new_tokens
    uniforms = row_uniforms(seeds, limit).to(model.device)
    tokens: list[list[int]] = [[] for _ in range(num_rows)]
    log_probs: list[list[float]] = [[] for _ in range(num_rows)]
    cutoffs: list[list[float]] = [[] for _ in range(num_rows)]
    active = torch.arange(num_rows, device=model.device)
    decoding = Decoding(model, encode(model, reader, contexts), limit)
    feed = torch.full((num_rows,), reader.bos, dtype=torch.int64, device=model.device)
    running = torch.ones(num_rows, dtype=torch.bool, device=model.device)
    for step in range(limit):
        logits = decoding.logits(feed)
        chosen, chosen_log_probs, cutoff = choose(logits, sampling, uniforms[active, step])
        going = running.tolist()
        rows, ids, values = active.tolist(), chosen.tolist(), chosen_log_probs.tolist()
        lines = cutoff.tolist() if cutoff is not None else []
        for i, row in enumerate(rows):
            if going[i]:
                tokens[row].append(ids[i])
                log_probs[row].append(values[i])
                cutoffs[row] += lines[i : i + 1]
        running = running & (chosen != reader.eos)
        left = int(running.sum())
        if left == 0:
            break
        feed = chosen
        if left <= running.shape[0] // 2:  # copying the survivors' cache costs less than carrying the finished rows
            stay = running.nonzero()[:, 0]
            decoding.select(stay)
            active, feed, running = active[stay], feed[stay], running[stay]
    return [
        TextSegment(
            context=contexts[r],
            token_ids=tuple(tokens[r]),
            log_probs=torch.tensor(log_probs[r]),
            text=reader.text(tokens[r]),
            ended=tokens[r][-1] == reader.eos,
            temperature=sampling.temperature or 1.0,
            cutoff=torch.tensor(cutoffs[r]) if cutoffs[r] else None,
        )
        for r in range(num_rows)
    ]


def row_uniforms(seeds: Sequence[int], count: int) -> Tensor:
    """float32 [B, count] in [0, 1), each row from its own seed, drawn on the CPU so that every device agrees."""
    return torch.stack([torch.rand(count, generator=torch.Generator().manual_seed(s)) for s in seeds])


def choose(logits: Tensor, sampling: Sampling, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Draws a token a row by the inverse of the cumulative distribution.

    logits [B, V], uniform [B]. Returns ids [B], their log-probs [B] under the tempered and truncated distribution,
    and with truncation the cut-offs float32 [B] (`TextSegment.cutoff`).
    """
    wide = logits.float()
    if sampling.greedy:
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
