"""The policy loss of a micro-batch: a surrogate's values, their KL term, their statistics.

An element is a sampled token of a text or a scored denoising step of an image: M of them in a micro-batch, flat and
without padding. Every loss is a sum over elements divided by a `normaliser` that the caller counts over the whole
training step (all micro-batches, all processes), so that cutting the step differently changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from r3_rl.algorithm.surrogates import LossInputs, Surrogate, clip
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
        >>> given = LossInputs(log_probs=zeros, old_log_probs=zeros, advantages=torch.ones(2), owner=zeros.long())
        >>> policy_loss(given, normaliser=2).statistics.means()["ratio"]
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


def k3(log_probs: torch.Tensor, reference_log_probs: torch.Tensor) -> torch.Tensor:
    """Estimate the KL divergence to the reference from each sampled token, without bias and never below 0.

    k3 = exp(d) - d - 1,   d = log_prob_ref - log_prob

    Args:
        log_probs: [M], with gradient.
        reference_log_probs: [M], of the same tokens under the reference policy.

    Raises:
        InputError: shapes that differ.
        RunError: a reference with gradient.

    Source: Schulman, "Approximating KL divergence" (2020); GRPO.

    >>> k3(torch.zeros(2), torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.7183])
    """
    _same_shape(log_probs, reference_log_probs, "reference_log_probs")
    _without_gradient(reference_log_probs, "reference_log_probs")
    gap = reference_log_probs - log_probs
    return gap.exp() - gap - 1


def policy_loss(
    inputs: LossInputs,
    *,
    normaliser: float,
    surrogate: Surrogate = clip,
    beta: float = 0.0,
    kl: torch.Tensor | None = None,
) -> PolicyLoss:
    """Give the loss of sampled tokens (plans, critiques), or of stochastic denoising steps (drafts, refinements).

    L = sum_m (l_m + beta KL_m) / normaliser

    Args:
        inputs: the elements. A denoising step has one log-prob, a mean over the latent's dimensions; steps of the ODE
            have none and are not in here.
        normaliser: tokens, or scored steps, of the whole training step.
        surrogate: gives l from `inputs`.
        beta: KL coefficient.
        kl: [M] with gradient: `k3` of tokens, `flow.kl_mean` or `flow.kl_velocity` of denoising steps. Where beta is 0
            it is only watched.

    Raises:
        InputError: shapes that differ, a normaliser that is not positive, or a KL term without its values.
        RunError: gradient where there must be none, or none where it must be.

    Source: GRPO (DeepSeekMath); mean over elements from DAPO, section 3.3; Flow-GRPO, section 4.1, and R3 (arXiv
    2602.15772) for denoising steps.

    >>> zeros = torch.zeros(4)
    >>> given = LossInputs(log_probs=zeros, old_log_probs=zeros, advantages=torch.ones(4), owner=zeros.long())
    >>> policy_loss(given, normaliser=8).loss, policy_loss(given, normaliser=8, beta=0.5, kl=torch.ones(4)).loss
    (tensor(-0.5000), tensor(-0.2500))
    """
    log_probs = inputs.log_probs
    for name in ("old_log_probs", "advantages", "owner"):
        _same_shape(log_probs, getattr(inputs, name), name)
    _without_gradient(inputs.old_log_probs, "old_log_probs")
    if not normaliser > 0:
        raise InputError(f"normaliser {normaliser} is not positive", hint="count the elements of the whole step")
    if beta > 0 and kl is None:
        raise InputError(f"beta is {beta} but there is no kl", hint="pass kl: k3, flow.kl_mean or flow.kl_velocity")
    if kl is not None:
        _same_shape(log_probs, kl, "kl")
        if beta > 0 and log_probs.requires_grad and not kl.requires_grad:
            raise RunError("the KL term carries no gradient", hint="compute it from the replayed elements")
    found = surrogate(inputs)
    _same_shape(log_probs, found.values, "the surrogate's values")
    total = found.values.sum() if kl is None else found.values.sum() + beta * kl.sum()
    return PolicyLoss(loss=total / normaliser, statistics=_statistics(inputs, found.ratio, kl))


@torch.no_grad()
def _statistics(inputs: LossInputs, clipped: torch.Tensor, kl: torch.Tensor | None) -> LossStatistics:
    (low, high), ratio = inputs.clip_range, torch.exp(inputs.log_probs - inputs.old_log_probs).float()
    deviation = (ratio - 1).abs()
    return LossStatistics(
        count=torch.tensor(float(ratio.numel()), device=ratio.device),
        ratio=ratio.sum(),
        ratio_deviation_max=deviation.max() if ratio.numel() else deviation.sum(),
        clipped_low=((clipped.float() < low) & (inputs.advantages < 0)).sum().float(),
        clipped_high=((clipped.float() > high) & (inputs.advantages > 0)).sum().float(),
        kl=None if kl is None else kl.sum().float(),
    )


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
