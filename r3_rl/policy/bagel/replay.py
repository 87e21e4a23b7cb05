"""Segments scored again under the current weights, with gradient.

A text and the image drawn after it share one row: the text's tokens are scored where the image's steps find them as
context, so a plan and its draft cost one pass. The steps of one image follow one another in the row as noisy blocks
that do not see each other. What rows share at their beginning (the prompt, the image looked at) is read once for all
of them, the rows of the branches that guidance drops included.
Shapes: S scored steps, M latent tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from r3_rl.flow.conventions import MATCHING
from r3_rl.flow.guidance import combine
from r3_rl.flow.matching import matching_log_prob
from r3_rl.flow.schedule import shifted_schedule
from r3_rl.flow.sde import log_prob, stochastic_step
from r3_rl.modalities import Context, FlowSegment, ImagePiece, Segment, TextSegment
from r3_rl.policy.bagel.encoder import Contexts, Encoded
from r3_rl.policy.bagel.model import Bagel, BagelOutput
from r3_rl.policy.bagel.packing import Block, LatentBlock, Packed, TextBlock, num_tokens, pack
from r3_rl.policy.bagel.reader import Reader, kept_pieces
from r3_rl.policy.base import FlowReplay, Replay
from r3_rl.policy.prefixes import context_key, spans, written_before
from r3_rl.policy.routing import told
from r3_rl.policy.tokens import token_log_probs


@dataclass(kw_only=True, eq=False)
class _Row:
    """One row of the pass and whose numbers come out of it."""

    context: Context
    """What is read before."""
    blocks: list[Block]
    """What is scored."""
    task: str
    """By which it is read; empty where no adapter is routed."""
    text: int | None = None
    """Index of the text segment scored in this row."""
    images: list[tuple[int, str]] = field(default_factory=list)
    """Index of an image segment and the branch (full, text, image), in the order of the noisy blocks."""


def replay(model: Bagel, reader: Reader, segments: Sequence[Segment]) -> list[Replay]:
    """Log-probs of every segment; with an image's what its divergence is measured by."""
    rows = _rows(reader, segments, told(model, [segment.task for segment in segments]))
    found = _Found()
    cached = Contexts(model, reader, [row.context for row in rows], tasks=[row.task for row in rows], least=2)
    for places in cached.by_prefix():
        blocks = [[*cached.rest(i), *rows[i].blocks] for i in places]
        _score(model, segments, [rows[i] for i in places], blocks, cached.past(places), found)
    for index, branch in found.velocities:
        if branch == "full":
            found.results[index] = _image_replay(segments[index], index, found.velocities, model.device)
    return [found.results[i] for i in range(len(segments))]


@dataclass(kw_only=True, eq=False)
class _Found:
    """What the passes of a replay have brought so far."""

    results: dict[int, Replay] = field(default_factory=dict)
    """By segment."""
    velocities: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    """[S, M, C] by segment and branch."""


def _score(
    model: Bagel,
    segments: Sequence[Segment],
    rows: Sequence[_Row],
    blocks: Sequence[Sequence[Block]],
    past: Encoded,
    found: _Found,
) -> None:
    """One pass over the blocks of rows, after their past."""
    start, tasks = past.next_position.tolist(), [row.task for row in rows]
    packed = pack(blocks, model.config, start=start, tasks=tasks, device=model.device)
    out = model(packed, past.parts)
    found.results |= _text_log_probs(segments, [row.text for row in rows if row.text is not None], out, packed)
    places = [place for row in rows for place in row.images]
    shapes = [
        (len(_replayed_steps(segment, branch)), *segment.states.shape[1:])
        for index, branch in places
        if isinstance(segment := segments[index], FlowSegment)
    ]
    # split, not a slice each: a slice's backward pass is a zero-filled copy of the whole
    velocities = out.velocity.split([steps * tokens for steps, tokens, _ in shapes])
    found.velocities |= {p: v.view(shape) for p, v, shape in zip(places, velocities, shapes, strict=True)}


def _text_log_probs(
    segments: Sequence[Segment], texts: Sequence[int], out: BagelOutput, packed: Packed
) -> dict[int, Replay]:
    """Of the texts in the order of their logits; texts sampled alike in one operation."""
    places: dict[int, tuple[int, int]] = {}
    alike: dict[tuple[float, bool], list[int]] = {}
    at = 0
    for index in texts:
        segment = segments[index]
        assert isinstance(segment, TextSegment)
        places[index] = (at, at + len(segment.token_ids))
        at = places[index][1]
        alike.setdefault((segment.temperature, segment.cutoff is not None), []).append(index)
    results: dict[int, Replay] = {}
    for (temperature, truncated), indices in alike.items():
        logits, targets = out.logits, packed.targets
        if len(indices) < len(texts):
            own = torch.cat([torch.arange(*places[i]) for i in indices]).to(logits.device)
            logits, targets = logits[own], targets[own]
        cutoffs = [c for i in indices if isinstance(s := segments[i], TextSegment) and (c := s.cutoff) is not None]
        cutoff = torch.cat(cutoffs).to(logits.device) if truncated else None
        log_probs = token_log_probs(logits, targets, temperature=temperature, cutoff=cutoff)
        sizes = [places[i][1] - places[i][0] for i in indices]
        results |= {i: Replay(log_probs=own) for i, own in zip(indices, log_probs.split(sizes), strict=True)}
    return results


def _rows(reader: Reader, segments: Sequence[Segment], tasks: Sequence[str]) -> list[_Row]:
    """One row a text (with the image drawn after it, where both are replayed and read alike), one an image, one a
    dropped branch."""
    rows: list[_Row] = []
    by_text: dict[Hashable, _Row] = {}
    for i, segment in enumerate(segments):
        if isinstance(segment, TextSegment):
            row = _Row(context=segment.context, blocks=[_scored(reader, segment)], task=tasks[i], text=i)
            by_text.setdefault((tasks[i], (context_key(segment.context), segment.token_ids)), row)
            rows.append(row)
    for i, segment in enumerate(segments):
        if not isinstance(segment, FlowSegment) or not len(segment.times):
            assert isinstance(segment, TextSegment), "an image without stochastic steps has nothing to replay"
            continue
        host = by_text.get((tasks[i], written_before(segment.context)))
        if host is None:
            host = _Row(context=segment.context, blocks=[], task=tasks[i])
            rows.append(host)
        host.blocks.extend(_noisy_blocks(reader, segment, "full"))
        host.images.append((i, "full"))
        for drop in _dropped(segment):
            if _replayed_steps(segment, drop):
                blocks = _noisy_blocks(reader, segment, drop)
                kept = kept_pieces(segment.context, drop)
                rows.append(_Row(context=kept, blocks=blocks, task=tasks[i], images=[(i, drop)]))
    for row in rows:
        if row.text is not None and not row.images:
            text = row.blocks[0]
            assert isinstance(text, TextBlock)
            row.blocks = [replace(text, last=True)]
    return rows


def _scored(reader: Reader, segment: TextSegment) -> TextBlock:
    block = reader.text_block(segment.text, segment.token_ids)
    return TextBlock(ids=block.ids, num_scored=len(segment.token_ids))


def _dropped(segment: FlowSegment) -> list[str]:
    """Branches replayed beside the full one; without an image in the context the image-dropped one is the full one."""
    guidance = segment.drawing.guidance
    image = guidance.needs_image_drop and any(isinstance(piece, ImagePiece) for piece in segment.context)
    return [*(["text"] if guidance.needs_text_drop else []), *(["image"] if image else [])]


def _replayed_steps(segment: FlowSegment, branch: str) -> list[int]:
    """Indices into the scored steps; a dropped branch is needed only where guidance acts."""
    times = segment.times.tolist()
    return [s for s, t in enumerate(times) if branch == "full" or segment.drawing.guidance.active(t)]


def _noisy_blocks(reader: Reader, segment: FlowSegment, branch: str) -> list[Block]:
    grid = reader.grid(segment.drawing.size)
    return [
        LatentBlock(tokens=segment.states[s], grid=grid, time=float(segment.times[s]), noisy=True)
        for s in _replayed_steps(segment, branch)
    ]


def _image_replay(
    segment: Segment, index: int, velocities: dict[tuple[int, str], Tensor], device: torch.device
) -> FlowReplay:
    assert isinstance(segment, FlowSegment)
    drawing = segment.drawing
    velocity = velocities[index, "full"]
    times = segment.times.to(device)
    dropped = []
    for branch in ("text", "image"):
        if (index, branch) in velocities:
            active = torch.tensor(_replayed_steps(segment, branch), device=device)
            dropped.append(torch.zeros_like(velocity).index_copy(0, active, velocities[index, branch]))
    if len(dropped) == 1 and drawing.guidance.needs_image_drop:
        dropped.append(velocity)
    velocity = combine(drawing.guidance, times, velocity, *dropped)
    if drawing.convention == MATCHING:
        log_probs = matching_log_prob(velocity, segment.next_states.to(device), times)
        return FlowReplay(log_probs=log_probs, mean=velocity, std=torch.ones_like(times), velocity=velocity)
    step = stochastic_step(
        segment.states.to(device),
        velocity,
        times,
        segment.next_times.to(device),
        drawing.convention,
        drawing.eta,
        second_time=float(shifted_schedule(drawing.num_steps + 1, drawing.shift)[1]),
    )
    log_probs = log_prob(step, segment.next_states.to(device))
    return FlowReplay(log_probs=log_probs, mean=step.mean, std=step.std, velocity=velocity)


def replayed_tokens(model: Bagel, reader: Reader, segments: Sequence[Segment]) -> int:
    """Tokens that `replay` reads, without padding: prefixes that rows share once, a plan and its image in one row."""
    rows = _rows(reader, segments, told(model, [segment.task for segment in segments]))
    contexts = [row.context for row in rows]
    alone = sum(map(reader.num_tokens, contexts)) + sum(num_tokens(block) for row in rows for block in row.blocks)
    shared = [span for level in spans(contexts, tasks=[row.task for row in rows], least=2) for span in level]
    return alone - sum((len(span.rows) - 1) * reader.num_tokens(span.pieces) for span in shared)
