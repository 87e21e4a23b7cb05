"""Texts sampled for a batch of contexts: static cache, rows seeded apart, finished rows leave."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from r3_rl.modalities import Context, TextSegment
from r3_rl.policy.bagel.decoding import Decoding
from r3_rl.policy.bagel.encoder import encode
from r3_rl.policy.bagel.model import Bagel
from r3_rl.policy.bagel.reader import Reader
from r3_rl.policy.base import Heard, Sampling
from r3_rl.policy.routing import told
from r3_rl.policy.tokens import choose, row_uniforms


@torch.no_grad()
def write(
    model: Bagel,
    reader: Reader,
    contexts: Sequence[Context],
    sampling: Sampling,
    seeds: Sequence[int],
    heard: Sequence[Heard | None] | None = None,
) -> list[TextSegment]:
    """One text a context. The first token fed is bos at the context's next position; eos ends a text."""
    num_rows, limit = len(contexts), sampling.max_new_tokens
    uniforms = row_uniforms(seeds, limit).to(model.device)
    tokens: list[list[int]] = [[] for _ in range(num_rows)]
    log_probs: list[list[float]] = [[] for _ in range(num_rows)]
    cutoffs: list[list[float]] = [[] for _ in range(num_rows)]
    active = torch.arange(num_rows, device=model.device)
    tasks = told(model, [sampling.task] * num_rows)
    decoding = Decoding(model, encode(model, reader, contexts, tasks), limit, task=tasks[0])
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
                if heard and (hear := heard[row]):
                    hear(reader.text(tokens[row]))
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
            task=sampling.task,
        )
        for r in range(num_rows)
    ]
