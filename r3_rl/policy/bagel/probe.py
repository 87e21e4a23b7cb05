"""What a BAGEL model gives for one fixed row: two models with equal outputs are the same policy."""

from __future__ import annotations

import torch
from torch import Tensor

from r3_rl.policy.bagel.config import BagelConfig
from r3_rl.policy.bagel.model import Bagel
from r3_rl.policy.bagel.packing import Block, LatentBlock, LookBlock, TextBlock, pack


@torch.no_grad()
def outputs(model: Bagel, task: str = "") -> Tensor:
    """Logits and velocities, float32 on the host, of a row with every kind of token: texts, an image, latents. task: by
    which it is read, where the model's adapter is routed by task."""
    config: BagelConfig = model.config
    generator = torch.Generator().manual_seed(0)
    look = (min(2, config.vit_max_num_patch_per_side),) * 2
    draw = (min(2, config.max_latent_size),) * 2
    patch_size = config.vit.patch_size**2 * config.vit.num_channels
    words = torch.randint(config.llm.vocab_size, (12,), generator=generator).tolist()
    row: list[Block] = [
        LookBlock(patches=torch.rand(look[0] * look[1], patch_size, generator=generator) * 2 - 1, grid=look),
        TextBlock(ids=words, num_scored=len(words) - 1),
        LatentBlock(
            tokens=torch.randn(draw[0] * draw[1], config.latent_channels, generator=generator),
            grid=draw,
            time=0.5,
            noisy=True,
        ),
    ]
    out = model(pack([row], config, tasks=[task], device=model.device))
    return torch.cat([out.logits.float().flatten(), out.velocity.float().flatten()]).cpu()
