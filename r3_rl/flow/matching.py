"""A surrogate of an image's log-likelihood that needs no stochastic step: its flow-matching loss.

An image x_0 drawn by the plain ODE is noised again, x_t = (1 - t) x_0 + t x_1, and the policy's velocity at x_t is
compared with x_1 - x_0. The negative loss takes the place of a log-prob in ratio and clipping: an image that earned an
advantage pulls the velocity towards itself, one that lost pushes it away. Every scored level says something about the
whole image, where the log-prob of a stochastic step says something about the noise of that step only.
"""

from __future__ import annotations

import torch

SOFTEN_BELOW = 0.35
"""s: levels t < s weigh (t / s)^2, since a data prediction's velocity error grows with 1 / t (as in pretraining)."""


def noised(data: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the state of an image at a noise level and the velocity that leads to it.

    x_t = (1 - t) x_0 + t x_1;   v = x_1 - x_0

    Args:
        data: [..., N, C], the finished latent x_0.
        noise: [..., N, C], standard normal x_1.
        time: [...], t in (0, 1].

    Returns:
        x_t and v, float32 [..., N, C].

    >>> state, velocity = noised(torch.zeros(1, 1, 1), torch.ones(1, 1, 1), torch.tensor([0.25]))
    >>> state.item(), velocity.item()
    (0.25, 1.0)
    """
    t = time.float()[..., None, None]
    data, noise = data.float(), noise.float()
    return (1 - t) * data + t * noise, noise - data


def matching_log_prob(velocity: torch.Tensor, target: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """Score an image at a noise level by the negative flow-matching loss.

    log p := -w(t) mean_{N,C} (v - (x_1 - x_0))^2,   w(t) = min(1, t / s)^2

    Args:
        velocity: [..., N, C], the policy's (guided) velocity at x_t; gradient flows through it.
        target: [..., N, C], x_1 - x_0.
        time: [...], t in (0, 1].

    Returns:
        float32 [...]. Only differences between two policies mean anything.

    Source: McAllister et al., Flow matching policy gradients (arXiv 2507.21053), for the ratio of matching losses;
    DiffusionNFT (arXiv 2509.16117) for learning on the forward process.

    >>> matching_log_prob(torch.zeros(2, 3, 1), torch.ones(2, 3, 1), torch.tensor([1.0, 0.175]))
    tensor([-1.0000, -0.2500])
    """
    weight = (time.float() / SOFTEN_BELOW).clamp(max=1.0).square()
    return -weight * (velocity.float() - target.float()).square().mean(dim=(-2, -1))
