"""Segments scored again under the current weights, with gradient.

A text and the image drawn after it share one row: the text's tokens are scored where the image's steps find them as
context, so a plan and its draft cost one pass. The steps of one image follow one another in the row as noisy blocks
that do not see each other. Shapes: S scored steps, M latent tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from r3_rl.flow.guidance import combine
from r3_rl.flow.schedule import shifted_schedule
from r3_rl.flow.sde import log_prob, stochastic_step
from r3_rl.policy.bagel.model import Bagel, token_log_probs
from r3_rl.policy.bagel.packing import Block, LatentBlock, TextBlock, num_tokens, pack
from r3_rl.policy.bagel.reader import Reader
from r3_rl.policy.base import ImageReplay
from r3_rl.types import Context, ImagePiece, ImageSegment, Segment, TextPiece, TextSegment


@dataclass(kw_only=True, eq=False)
class _Row:
    """One row of the pass and whose numbers come out of it."""

    blocks: list[Block]
    text: int | None = None
    """Index of the text segment scored in this row."""
    images: list[tuple[int, str]] = field(default_factory=list)
    """Index of an image segment and the branch (full, text, image), in the order of the noisy blocks."""


def replay(model: Bagel, reader: Reader, segments: Sequence[Segment]) -> list[Tensor | ImageReplay]:
    """Log-probs of every segment: float32 [T] for a text, an `ImageReplay` for an image."""
    rows = _rows(reader, segments)
    packed = pack([row.blocks for row in rows], model.config, device=model.device)
    out = model(packed)
    results: list[Tensor | ImageReplay | None] = [None] * len(segments)
    velocities: dict[tuple[int, str], Tensor] = {}
    logit_at = velocity_at = 0
    for row in rows:
        if row.text is not None:
            segment = segments[row.text]
            assert isinstance(segment, TextSegment)
            count = len(segment.token_ids)
            span = slice(logit_at, logit_at + count)
            kept = None if segment.kept is None else segment.kept.to(model.device)
            results[row.text] = token_log_probs(
                out.logits[span], packed.targets[span], temperature=segment.temperature, kept=kept
            )
            logit_at += count
        for index, branch in row.images:
            segment = segments[index]
            assert isinstance(segment, ImageSegment)
            steps = _replayed_steps(segment, branch)
            shape = (len(steps), *segment.states.shape[1:])
            count = shape[0] * shape[1]
            velocities[index, branch] = out.velocity[velocity_at : velocity_at + count].view(shape)
            velocity_at += count
    for index, branch in velocities:
        if branch == "full":
            results[index] = _image_replay(segments[index], index, velocities, model.device)
    assert all(r is not None for r in results)
    return results  # type: ignore[return-value]


def _rows(reader: Reader, segments: Sequence[Segment]) -> list[_Row]:
    """One row a text (with the image drawn after it, where both are replayed), one an image, one a dropped branch."""
    rows: list[_Row] = []
    by_text: dict[int, _Row] = {}
    for i, segment in enumerate(segments):
        if isinstance(segment, TextSegment):
            row = _Row(blocks=[*reader.blocks(segment.context), _scored(reader, segment)], text=i)
            by_text[id(segment.token_ids)] = row
            rows.append(row)
    for i, segment in enumerate(segments):
        if not isinstance(segment, ImageSegment) or not len(segment.times):
            assert isinstance(segment, TextSegment), "an image without stochastic steps has nothing to replay"
            continue
        host = _host(segment.context, by_text, segments)
        if host is None:
            host = _Row(blocks=reader.blocks(segment.context))
            rows.append(host)
        host.blocks.extend(_noisy_blocks(reader, segment, "full"))
        host.images.append((i, "full"))
        for drop in _dropped(segment):
            if _replayed_steps(segment, drop):
                blocks = [*reader.blocks(segment.context, drop=drop), *_noisy_blocks(reader, segment, drop)]
                rows.append(_Row(blocks=blocks, images=[(i, drop)]))
    return rows


def _scored(reader: Reader, segment: TextSegment) -> TextBlock:
    block = reader.text_block(segment.text, segment.token_ids)
    return TextBlock(ids=block.ids, num_scored=len(segment.token_ids))


def _host(context: Context, by_text: dict[int, _Row], segments: Sequence[Segment]) -> _Row | None:
    """The row of the text that this image was drawn after, if that text is replayed in the same pass."""
    last = context[-1] if context else None
    if not isinstance(last, TextPiece) or last.token_ids is None:
        return None
    row = by_text.get(id(last.token_ids))
    if row is None or row.text is None:
        return None
    before = segments[row.text].context
    same = len(before) == len(context) - 1 and all(a is b for a, b in zip(before, context, strict=False))
    return row if same else None


def _dropped(segment: ImageSegment) -> list[str]:
    """Branches replayed beside the full one; without an image in the context the image-dropped one is the full one."""
    guidance = segment.drawing.guidance
    image = guidance.needs_image_drop and any(isinstance(piece, ImagePiece) for piece in segment.context)
    return [*(["text"] if guidance.needs_text_drop else []), *(["image"] if image else [])]


def _replayed_steps(segment: ImageSegment, branch: str) -> list[int]:
    """Indices into the scored steps; a dropped branch is needed only where guidance acts."""
    times = segment.times.tolist()
    return [s for s, t in enumerate(times) if branch == "full" or segment.drawing.guidance.active(t)]


def _noisy_blocks(reader: Reader, segment: ImageSegment, branch: str) -> list[Block]:
    grid = reader.grid(segment.drawing.size)
    return [
        LatentBlock(tokens=segment.states[s], grid=grid, time=float(segment.times[s]), noisy=True)
        for s in _replayed_steps(segment, branch)
    ]


def _image_replay(
    segment: Segment, index: int, velocities: dict[tuple[int, str], Tensor], device: torch.device
) -> ImageReplay:
    assert isinstance(segment, ImageSegment)
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
    return ImageReplay(log_probs=log_probs, mean=step.mean, std=step.std, velocity=velocity)


def segment_tokens(reader: Reader, segment: Segment) -> int:
    """Tokens that replaying the segment costs, the dropped branches of guidance included."""
    if isinstance(segment, TextSegment):
        return reader.num_tokens(segment.context) + num_tokens(_scored(reader, segment))
    step = segment.states.shape[1] + 2
    return sum(
        reader.num_tokens(segment.context, drop="" if branch == "full" else branch) + steps * step
        for branch in ("full", *_dropped(segment))
        if (steps := len(_replayed_steps(segment, branch)))
    )
