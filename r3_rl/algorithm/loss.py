"""The clipped policy loss of texts and of denoising steps, with its KL term.

An element is a sampled token of a text or a scored denoising step of an image: M of them in a micro-batch, flat and
without padding. Every loss is a sum over elements divided by a `normaliser` that the caller counts over the whole
training step (all micro-batches, all processes), so that cutting the step differently changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from r3_rl.errors import InputError, RunError


@dataclass(frozen=True, kw_only=True, eq=False)
class LossStatistics:
    """Sums over the elements of a micro-batch, detached, 0-dim and float32."""

    count: torch.Tensor
    ratio: torch.Tensor
    ratio_deviation_max: torch.Tensor
    """Largest |ratio - 1|; 0 for no element. On the first pass of an on-policy step it must be below 1e-4."""
    clipped_low: torch.Tensor
    """Elements with A < 0 and ratio < 1 - epsilon: they push no further down."""
    clipped_high: torch.Tensor
    """Elements with A > 0 and ratio > 1 + epsilon_high: they push no further up."""
    kl: torch.Tensor | None
    """None where no divergence was measured, which is not a divergence of 0."""

    def means(self) -> dict[str, float]:
        """Give the metrics: means over the elements; empty when there is none.

        >>> zeros = torch.zeros(2)
        >>> text_loss(zeros, zeros, torch.ones(2), normaliser=2).statistics.means()["ratio"]
        1.0
        """
        count = int(self.count)
        if count == 0:
            return {}
        low, high = float(self.clipped_low) / count, float(self.clipped_high) / count
        return {
            "ratio": float(self.ratio) / count,
            "ratio_deviation_max": float(self.ratio_deviation_max),
            "clip_ratio/low": low,
            "clip_ratio/high": high,
            "clip_ratio/region": low + high,
            **({} if self.kl is None else {"kl": float(self.kl) / count}),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyLoss:
    """A micro-batch's share of the step's loss."""

    loss: torch.Tensor
    """0-dim, with gradient: sum over elements / normaliser."""
    statistics: LossStatistics


def clipped_surrogate(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    epsilon: float,
    epsilon_high: float | None = None,
) -> torch.Tensor:
    """Give the clipped surrogate loss of each element.

    l = -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A),   rho = exp(log_prob - old_log_prob)

    Args:
        log_probs: [M], under the current weights and the sampling distribution that was used, with gradient.
        old_log_probs: [M], at sampling time.
        advantages: [M].
        epsilon: lower clip range, 0 .. 1; `epsilon_high` the upper one, equal to `epsilon` if left out.

    Returns:
        [M].

    Source: PPO, equation 7; DAPO, section 3.1, for the separate upper range.

    >>> clipped_surrogate(torch.tensor([0.0, 1.0]), torch.zeros(2), torch.tensor([1.0, 1.0]), 0.2)
    tensor([-1.0000, -1.2000])
    """
    high = epsilon if epsilon_high is None else epsilon_high
    if not 0 <= epsilon <= 1 or not high >= 0:
        raise InputError(f"clip range {epsilon}, {high} is not valid", hint="0 <= epsilon <= 1 and epsilon_high >= 0")
    ratio = torch.exp(log_probs - old_log_probs)
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - epsilon, 1 + high) * advantages)


def k3(log_probs: torch.Tensor, reference_log_probs: torch.Tensor) -> torch.Tensor:
    """Estimate the KL divergence to the reference from each sampled token, without bias and never below 0.

    k3 = exp(d) - d - 1,   d = log_prob_ref - log_prob

    Args:
        log_probs: [M], with gradient.
        reference_log_probs: [M], of the same tokens under the reference policy.

    Source: Schulman, "Approximating KL divergence" (2020); GRPO.

    >>> k3(torch.zeros(2), torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.7183])
    """
    gap = reference_log_probs - log_probs
    return gap.exp() - gap - 1


def text_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    *,
    normaliser: float,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    beta: float = 0.0,
    reference_log_probs: torch.Tensor | None = None,
) -> PolicyLoss:
    """Give the loss of sampled tokens (plans, critiques).

    L = sum_m (l_m + beta k3_m) / normaliser

    Args:
        log_probs: [M], of the tokens of all texts in a row, end tokens included, under the tempered and truncated
            distribution that was sampled from, with gradient.
        old_log_probs: [M], as recorded at sampling.
        advantages: [M], each text's advantage repeated over its tokens.
        normaliser: tokens of the whole training step.
        epsilon, epsilon_high: clip range.
        beta: KL coefficient; above 0 it needs `reference_log_probs`, [M].

    Raises:
        InputError: shapes that differ, a normaliser that is not positive, or a KL term without its reference.
        RunError: gradient where there must be none, or none where it must be.

    Source: GRPO (DeepSeekMath); token-level mean from DAPO, section 3.3.

    >>> text_loss(torch.zeros(4), torch.zeros(4), torch.ones(4), normaliser=8).loss
    tensor(-0.5000)
    """
    kl = None
    if beta > 0 or reference_log_probs is not None:
        if reference_log_probs is None:
            raise InputError(f"beta is {beta} but there are no reference log-probs", hint="pass reference_log_probs")
        _same_shape(log_probs, reference_log_probs, "reference_log_probs")
        _without_gradient(reference_log_probs, "reference_log_probs")
        kl = k3(log_probs, reference_log_probs)
    return _policy_loss(log_probs, old_log_probs, advantages, kl, normaliser, epsilon, epsilon_high, beta)


def image_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    *,
    normaliser: float,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    beta: float = 0.0,
    kl: torch.Tensor | None = None,
) -> PolicyLoss:
    """Give the loss of stochastic denoising steps (drafts, refinements).

    L = sum_m (l_m + beta KL_m) / normaliser

    Args:
        log_probs: [M], one for each scored step (mean over the latent's dimensions), with gradient. Steps of the ODE
            have none and are not in here.
        old_log_probs: [M], as recorded at sampling.
        advantages: [M], each image's advantage repeated over its scored steps.
        normaliser: scored steps of the whole training step.
        epsilon, epsilon_high: clip range of images; narrow, since the log-prob is a mean over dimensions.
        beta: KL coefficient; above 0 it needs `kl`, [M] with gradient (`flow.kl_mean` or `flow.kl_velocity`).

    Raises:
        InputError: shapes that differ, a normaliser that is not positive, or a KL term without its values.
        RunError: gradient where there must be none, or none where it must be.

    Source: Flow-GRPO, section 4.1; R3 (arXiv 2602.15772).

    >>> image_loss(torch.zeros(2), torch.zeros(2), torch.ones(2), normaliser=2, beta=0.5, kl=torch.ones(2)).loss
    tensor(-0.5000)
    """
    if beta > 0 and kl is None:
        raise InputError(f"beta is {beta} but there is no kl", hint="pass kl, from flow.kl_mean or flow.kl_velocity")
    if kl is not None:
        _same_shape(log_probs, kl, "kl")
        if beta > 0 and log_probs.requires_grad and not kl.requires_grad:
            raise RunError("the KL term of the images carries no gradient", hint="compute it from the replayed step")
    return _policy_loss(log_probs, old_log_probs, advantages, kl, normaliser, epsilon, epsilon_high, beta)


def _policy_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    kl: torch.Tensor | None,
    normaliser: float,
    epsilon: float,
    epsilon_high: float | None,
    beta: float,
) -> PolicyLoss:
    _same_shape(log_probs, old_log_probs, "old_log_probs")
    _same_shape(log_probs, advantages, "advantages")
    _without_gradient(old_log_probs, "old_log_probs")
    if not normaliser > 0:
        raise InputError(f"normaliser {normaliser} is not positive", hint="count the elements of the whole step")
    element = clipped_surrogate(log_probs, old_log_probs, advantages, epsilon, epsilon_high)
    total = element.sum() if kl is None else element.sum() + beta * kl.sum()
    with torch.no_grad():
        ratio = torch.exp(log_probs - old_log_probs).float()
        high = epsilon if epsilon_high is None else epsilon_high
        deviation = (ratio - 1).abs()
        statistics = LossStatistics(
            count=torch.tensor(float(ratio.numel()), device=ratio.device),
            ratio=ratio.sum(),
            ratio_deviation_max=deviation.max() if ratio.numel() else deviation.sum(),
            clipped_low=((ratio < 1 - epsilon) & (advantages < 0)).sum().float(),
            clipped_high=((ratio > 1 + high) & (advantages > 0)).sum().float(),
            kl=None if kl is None else kl.sum().float(),
        )
    return PolicyLoss(loss=total / normaliser, statistics=statistics)


def _same_shape(log_probs: torch.Tensor, other: torch.Tensor, name: str) -> None:
    # Broadcasting [M] against [M, 1] would silently pair every element with every other one.
    if log_probs.ndim != 1 or log_probs.shape != other.shape:
        raise InputError(
            f"log_probs {tuple(log_probs.shape)} and {name} {tuple(other.shape)} are not vectors of one length",
            hint="flatten the elements of all segments in the same order",
        )


def _without_gradient(tensor: torch.Tensor, name: str) -> None:
    if tensor.requires_grad:
        raise RunError(f"{name} carries gradient, which would cancel the policy's own", hint="compute it in no_grad")
