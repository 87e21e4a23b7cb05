"""Images denoised for a batch of contexts, with guidance branches in one pass and some steps stochastic.

Shapes: B rows, M latent tokens an image, C channels, S scored steps of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from r3_rl.flow.conventions import MATCHING
from r3_rl.flow.guidance import Guidance, combine
from r3_rl.flow.matching import matching_log_prob, noised
from r3_rl.flow.schedule import shifted_schedule
from r3_rl.flow.sde import euler_step, log_prob, sample, stochastic_step
from r3_rl.modalities import Context, FlowSegment, ImagePiece, ImageSegment
from r3_rl.policy.bagel.encoder import Contexts, Encoded
from r3_rl.policy.bagel.model import Bagel
from r3_rl.policy.bagel.packing import LatentBlock, Packed, pack
from r3_rl.policy.bagel.reader import Reader, kept_pieces
from r3_rl.policy.base import Drawing
from r3_rl.policy.routing import told

_STEP_NOISE = 0x5851F42D4C957F2D


@dataclass(kw_only=True, eq=False)
class _Branches:
    """The contexts of the full and the dropped branches, ready for the noisy block."""

    full: Encoded
    full_block: Packed
    everything: Encoded | None
    """Full, text-dropped and (where needed) image-dropped rows, one after the other."""
    everything_block: Packed | None


class Denoiser:
    """Velocities of one batch of contexts at any state and time; the contexts of all branches are encoded once."""

    def __init__(
        self,
        model: Bagel,
        reader: Reader,
        contexts: Sequence[Context],
        grid: tuple[int, int],
        guidance: Guidance,
        *,
        tasks: Sequence[str] = (),
    ) -> None:
        self.model, self.guidance = model, guidance
        self.num_rows, self.num_tokens = len(contexts), grid[0] * grid[1]
        drops = [""]
        if guidance.needs_text_drop:
            # without an image in any context the image-dropped branch is the full one
            image = guidance.needs_image_drop and any(isinstance(piece, ImagePiece) for c in contexts for piece in c)
            drops += ["text", *(["image"] if image else [])]
        read = [kept_pieces(c, drop) for drop in drops for c in contexts]
        cached = Contexts(model, reader, read, tasks=list(tasks) * len(drops))
        full = cached.past_of_steps(range(self.num_rows))
        everything = cached.past_of_steps(range(len(drops) * self.num_rows)) if len(drops) > 1 else None
        self.branches = _Branches(
            full=full,
            full_block=self._block(full, grid, cached.tasks(range(self.num_rows))),
            everything=everything,
            everything_block=self._block(everything, grid, cached.tasks(range(len(read)))) if everything else None,
        )

    def _block(self, encoded: Encoded, grid: tuple[int, int], tasks: Sequence[str]) -> Packed:
        blank = torch.zeros(self.num_tokens, self.model.config.latent_channels)
        rows = [[LatentBlock(tokens=blank, grid=grid, time=1.0, noisy=True)] for _ in encoded.next_position]
        start = encoded.next_position.tolist()
        return pack(rows, self.model.config, start=start, tasks=tasks, device=self.model.device)

    def velocity(self, x: Tensor, times: Tensor) -> Tensor:
        """Guided velocity float32 [B, M, C] at x [B, M, C] and times [B], which lie on the CPU; guidance acts inside
        its interval only."""
        if self.guidance.active(times).any():
            assert self.branches.everything is not None and self.branches.everything_block is not None
            count = self.branches.everything.next_position.shape[0] // self.num_rows
            everywhere = (x.repeat(count, 1, 1), times.repeat(count))
            v = self._forward(self.branches.everything_block, self.branches.everything, *everywhere)
            full, *dropped = v.split(self.num_rows)
            if self.guidance.needs_image_drop and len(dropped) == 1:
                dropped.append(full)
            return combine(self.guidance, times, full, *dropped)
        return self._forward(self.branches.full_block, self.branches.full, x, times)

    def _forward(self, block: Packed, encoded: Encoded, x: Tensor, times: Tensor) -> Tensor:
        packed = block.with_latents(x.flatten(0, 1), times.repeat_interleave(self.num_tokens).to(x.device))
        return self.model(packed, encoded.parts).velocity.view(x.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class Denoised:
    """A batch's walk from noise to data."""

    final: Tensor
    """float32 [B, M, C]."""
    states: list[list[Tensor]]
    """By row: x before each scored step."""
    next_states: list[list[Tensor]]
    log_probs: list[list[Tensor]]
    steps: list[list[int]]
    """By row: indices of the scored steps."""
    times: Tensor
    """float32 [T + 1] schedule."""


@torch.no_grad()
def denoise(denoiser: Denoiser, drawings: Sequence[Drawing], initial: Tensor, step_noise: Tensor) -> Denoised:
    """Walks initial noise [B, M, C] to data. step_noise [B, most scored steps of a row, M, C]."""
    first = drawings[0]
    times = shifted_schedule(first.num_steps + 1, first.shift)
    x = initial.to(denoiser.model.device, torch.float32)
    step_noise = step_noise.to(x.device, torch.float32)
    rows = x.shape[0]
    states: list[list[Tensor]] = [[] for _ in range(rows)]
    next_states: list[list[Tensor]] = [[] for _ in range(rows)]
    log_probs: list[list[Tensor]] = [[] for _ in range(rows)]
    steps: list[list[int]] = [[] for _ in range(rows)]
    for i in range(first.num_steps):
        t, t_next = float(times[i]), float(times[i + 1])
        v = denoiser.velocity(x, times[i].expand(rows))
        after = euler_step(x, v, torch.tensor(t), torch.tensor(t_next))
        scored = [r for r in range(rows) if first.convention != MATCHING and i in drawings[r].sde_steps]
        if scored:
            noise = torch.stack([step_noise[r, len(steps[r])] for r in scored])
            ones = torch.ones(len(scored), device=x.device)
            distribution = stochastic_step(
                x[scored], v[scored], ones * t, ones * t_next, first.convention, first.eta, second_time=float(times[1])
            )
            drawn = sample(distribution, noise)
            values = log_prob(distribution, drawn)
            for j, r in enumerate(scored):
                states[r].append(x[r])
                next_states[r].append(drawn[j])
                log_probs[r].append(values[j])
                steps[r].append(i)
            after = after.index_copy(0, torch.tensor(scored, device=x.device), drawn)
        x = after
    return Denoised(final=x, states=states, next_states=next_states, log_probs=log_probs, steps=steps, times=times)


def _match(denoiser: Denoiser, drawings: Sequence[Drawing], walk: Denoised, noise: Tensor) -> None:
    """Score finished images at their noise levels, with noise float32 [B, M, C]; scores go into `walk`.

    With the noise that each image was drawn from, the pair lies on the path that the sampler took, and the target does
    not depend on another draw. With noise that peers share, what it adds to their gradients is equal, and cancels where
    advantages sum to zero: what is left is how the images differ.
    """
    steps = [sorted(drawing.sde_steps) for drawing in drawings]
    for number in range(max(map(len, steps))):
        # each row at a level of its own; those that have no further one go along at t = 1
        own = torch.tensor([row[number] if number < len(row) else 0 for row in steps])
        times = walk.times[own]
        state, target = noised(walk.final, noise, times.to(noise.device))
        values = matching_log_prob(denoiser.velocity(state, times), target, times.to(noise.device))
        for r, row in enumerate(steps):
            if number < len(row):
                walk.states[r].append(state[r])
                walk.next_states[r].append(target[r])
                walk.log_probs[r].append(values[r])
                walk.steps[r].append(row[number])


@torch.no_grad()
def draw(
    model: Bagel,
    reader: Reader,
    contexts: Sequence[Context],
    drawings: Sequence[Drawing],
    seeds: Sequence[int],
    noise_seeds: Sequence[int] | None = None,
) -> list[ImageSegment]:
    """One image a context. `noise_seeds` lets rows share their initial noise while `seeds` keeps their steps apart."""
    size = drawings[0].size
    grid = reader.grid(size)
    shape = (grid[0] * grid[1], model.config.latent_channels)
    most = max(len(d.sde_steps) for d in drawings)
    starts = list(noise_seeds or seeds)
    initial = row_noise(starts, 1, shape)[:, 0]
    # other seeds than the initial noise's, and far from those of the neighbouring rows, or samples would repeat
    step_noise = row_noise([s ^ _STEP_NOISE for s in seeds], most, shape)
    tasks = told(model, [drawing.task for drawing in drawings])
    denoiser = Denoiser(model, reader, contexts, grid, drawings[0].guidance, tasks=tasks)
    walk = denoise(denoiser, drawings, initial, step_noise)
    if drawings[0].convention == MATCHING:
        matched = [s if d.matching_seed is None else d.matching_seed for s, d in zip(starts, drawings, strict=True)]
        noise = initial if matched == starts else row_noise(matched, 1, shape)[:, 0]
        _match(denoiser, drawings, walk, noise.to(model.device))
    images = reader.images(walk.final, size).cpu()
    out: list[ImageSegment] = []
    for r, context in enumerate(contexts):
        scored = torch.tensor(walk.steps[r], dtype=torch.int64)
        empty = torch.zeros(0, *shape)
        out.append(
            FlowSegment(
                context=context,
                image=images[r],
                states=torch.stack(walk.states[r]).cpu() if walk.states[r] else empty,
                next_states=torch.stack(walk.next_states[r]).cpu() if walk.states[r] else empty,
                times=walk.times[scored],
                next_times=walk.times[scored + 1],
                log_probs=torch.stack(walk.log_probs[r]).cpu() if walk.states[r] else torch.zeros(0),
                drawing=drawings[r],
            )
        )
    return out


def row_noise(seeds: Sequence[int], count: int, shape: tuple[int, int]) -> Tensor:
    """float32 [B, count, *shape] standard normal, each row from its own seed, drawn on the CPU."""
    return torch.stack([torch.randn(count, *shape, generator=torch.Generator().manual_seed(s % 2**63)) for s in seeds])
