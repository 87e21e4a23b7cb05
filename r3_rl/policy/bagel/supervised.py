"""Next-token and flow-matching losses of supervised examples in one packed pass.

Flow: x_t = (1 - t) data + t noise, target velocity noise - data, t and noise are the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from r3_rl.policy.bagel.model import Bagel
from r3_rl.policy.bagel.packing import Block, LatentBlock, pack
from r3_rl.policy.bagel.reader import Reader
from r3_rl.policy.base import Example, SupervisedLoss
from r3_rl.policy.routing import told


def supervised_loss(
    model: Bagel,
    reader: Reader,
    examples: Sequence[Example],
    times: Tensor,
    noise: Tensor,
    *,
    soften_below: float = 0.0,
) -> SupervisedLoss:
    """Losses of a batch. times float32 [images, K] in (0, 1) and noise float32 [images, K, M, C]: each target image is
    denoised at K times after one reading of its context.

    `soften_below` = s weighs the flow loss at t < s by (t / s)^2. A data prediction's velocity error is its own error
    over t, so without it the last fine details outweigh what is drawn where.
    """
    rows: list[list[Block]] = []
    velocities = []
    latents = _latents(reader, examples)
    at = 0
    for example in examples:
        row = reader.blocks(example.context)
        if example.answer is not None:
            row.append(reader.text_block(example.answer, scored=True))
        if example.image is not None:
            grid = reader.grid((example.image.shape[1], example.image.shape[2]))
            for t, eps in zip(times[at].tolist(), noise[at], strict=True):
                row.append(LatentBlock(tokens=(1 - t) * latents[at] + t * eps, grid=grid, time=t, noisy=True))
                velocities.append(eps - latents[at])
            at += 1
        rows.append(row)
    tasks = told(model, [example.task for example in examples])
    packed = pack(rows, model.config, tasks=tasks, device=model.device)
    out = model(packed)
    zero = out.velocity.new_zeros(())
    flow = zero
    if velocities:
        error = (out.velocity - torch.cat(velocities).to(model.device)).square().sum(-1)
        if soften_below > 0:
            error = error * (packed.latent_times[packed.noisy_index] / soften_below).clamp(max=1).square()
        flow = error.sum()
    num_text = packed.targets.shape[0]
    text = F.cross_entropy(out.logits.float(), packed.targets, reduction="sum") if num_text else zero
    return SupervisedLoss(flow=flow, num_flow=out.velocity.numel(), text=text, num_text=num_text)


def sketched(model: Bagel, reader: Reader, examples: Sequence[Example], generator: torch.Generator) -> Tensor:
    """What the decoder holds at each latent of images that are noise alone (t = 1), after their contexts and answers:
    [n, M, D], with gradient. Of the examples' images, of one size, nothing else is read."""
    rows: list[list[Block]] = []
    for example in examples:
        assert example.image is not None, "its size is read"
        grid = reader.grid((example.image.shape[1], example.image.shape[2]))
        row = reader.blocks(example.context)
        if example.answer is not None:
            row.append(reader.text_block(example.answer, scored=False))
        noise = torch.randn(math.prod(grid), model.config.latent_channels, generator=generator)
        rows.append([*row, LatentBlock(tokens=noise, grid=grid, time=1.0, noisy=True)])
    packed = pack(rows, model.config, device=model.device)
    decoded = model.decoder(model.embed(packed), packed.layout, None, keep=False, valid=packed.valid, trace=False)
    hidden: Tensor = decoded.hidden.index_select(0, packed.noisy_index + packed.layout.num_understanding)
    return hidden.float().unflatten(0, (len(rows), -1))


def _latents(reader: Reader, examples: Sequence[Example]) -> list[Tensor]:
    images = [e.image for e in examples if e.image is not None]
    if images and all(i.shape == images[0].shape for i in images):
        return list(reader.latent_tokens(torch.stack(images)))
    return [reader.latent_tokens(i[None])[0] for i in images]
