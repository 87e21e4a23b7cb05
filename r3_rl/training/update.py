"""The update: micro-batches -> accumulated gradient. Losses are normalised by the whole step, so any packing gives the
same gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from r3_rl import ranks, registered
from r3_rl.algorithm.loss import PolicyLoss, k3, policy_loss
from r3_rl.algorithm.surrogates import LossInputs, Surrogate
from r3_rl.balance.conflict import KINDS
from r3_rl.errors import RunError
from r3_rl.flow.sde import kl_mean, kl_velocity
from r3_rl.modalities import Objective, Segment
from r3_rl.observe.numbers import Numbers, combine
from r3_rl.policy.base import FlowReplay, Policy, Replay
from r3_rl.recipe.base import default
from r3_rl.recipe.learning import AlgorithmSection
from r3_rl.training.batcher import Batcher
from r3_rl.training.credit import Credit
from r3_rl.training.parallel import Learner

DEVIATIONS = ("ratio/text_deviation", "ratio/image_deviation")
"""Only on the first pass over fresh rollouts does a ratio that is not 1 say that rollout and replay disagree."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveLoss:
    """The loss of what is written, or of what is drawn: a part of the recipe's section `algorithm`."""

    metrics: str
    """Prefix of its metrics."""
    surrogate: Surrogate
    weight: float
    """In the loss of the step; 0 trains nothing of it."""
    beta: float
    """KL coefficient."""
    epsilon: float
    epsilon_high: float | None
    image_kl: Literal["mean", "velocity"]
    """How denoising steps diverge."""


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Surrogates, clip ranges, KL coefficients and weights (the `algorithm` section of a recipe)."""

    text_loss: str = default(AlgorithmSection, "text_loss")
    image_loss: str = default(AlgorithmSection, "image_loss")
    epsilon: float = default(AlgorithmSection, "epsilon")
    epsilon_high: float | None = default(AlgorithmSection, "epsilon_high")
    image_epsilon: float = default(AlgorithmSection, "image_epsilon")
    beta: float = default(AlgorithmSection, "beta")
    image_beta: float = default(AlgorithmSection, "image_beta")
    image_kl: Literal["mean", "velocity"] = default(AlgorithmSection, "image_kl")
    text_loss_weight: float = default(AlgorithmSection, "text_loss_weight")
    image_loss_weight: float = default(AlgorithmSection, "image_loss_weight")

    def losses(self) -> dict[Objective, ObjectiveLoss]:
        """By objective. Raises InputError for a name that stands for no loss."""
        return {
            "understanding": ObjectiveLoss(
                metrics="text",
                surrogate=registered.find(registered.LOSSES, self.text_loss),
                weight=self.text_loss_weight,
                beta=self.beta,
                epsilon=self.epsilon,
                epsilon_high=self.epsilon_high,
                image_kl=self.image_kl,
            ),
            "generation": ObjectiveLoss(
                metrics="image",
                surrogate=registered.find(registered.LOSSES, self.image_loss),
                weight=self.image_loss_weight,
                beta=self.image_beta,
                epsilon=self.image_epsilon,
                epsilon_high=None,
                image_kl=self.image_kl,
            ),
        }


def accumulate(
    batcher: Batcher,
    credits: Sequence[Credit],
    losses: Mapping[Objective, ObjectiveLoss],
    learner: Learner,
    normalisers: tuple[float, float] | None = None,
) -> Numbers:
    """Adds the step's gradient to the parameters, micro-batch by micro-batch. What weighs 0 is not replayed.

    Args:
        batcher: of the policy that is trained.
        credits: of this process; every process calls this together, those without credits too.
        losses: by objective.
        learner: holds the parameters.
        normalisers: (text tokens, denoising steps) of the step over all processes; by default those of the credits.

    Returns:
        Losses, ratios and divergences of this process's share of the step; without credits a loss of 0.

    Raises:
        RunError: a loss is not finite; its gradient is not taken.
    """
    policy = batcher.policy
    credits = [c for c in credits if losses[c.objective].weight > 0]
    sizes: dict[Objective, float] = dict(zip(KINDS, normalisers or step_sizes(credits), strict=True))
    found = [Numbers({"loss": 0.0})]
    references = None
    base_first = learner.base(batcher)
    with base_first or nullcontext():
        batches = batcher.plan(credits)
        if base_first is not None:
            references = [{} if b.dummy else _reference(policy, b.segments, losses) for b in batches]
    with learner.collecting(len(batches), batcher):
        for i, batch in enumerate(batches):
            results = policy.replay(batch.segments)
            if batch.dummy:
                learner.backward(_weightless(results))
                continue
            reference = references[i] if references is not None else _reference(policy, batch.segments, losses)
            parts = {
                name: _part(name, losses[name], batch.credits, results, reference, size)
                for name, size in sizes.items()
                if any(credit.objective == name for credit in batch.credits)
            }
            loss = torch.stack([losses[name].weight * part.loss for name, part in parts.items()]).sum()
            if not torch.isfinite(loss):
                raise RunError(
                    "the loss is not finite",
                    hint="lower training.learning_rate or eta; the last checkpoint is good",
                )
            learner.backward(loss)
            found.append(_numbers(loss, {losses[name].metrics: part for name, part in parts.items()}))
    return combine(found, over="batches")


def _weightless(results: Sequence[Replay]) -> Tensor:
    """A loss of 0 whose gradient reaches what the results do."""
    return 0.0 * torch.stack([result.log_probs.sum() for result in results]).sum()


def _numbers(loss: Tensor, parts: Mapping[str, PolicyLoss]) -> Numbers:
    """The metrics of a micro-batch; losses before their weights, but for the whole one."""
    found = Numbers({"loss": loss.detach()})
    for name, part in parts.items():
        means, prefix = part.statistics.means(), "" if name == "text" else f"{name}/"
        values = {
            **{
                f"{prefix}clip_ratio/{side}_mean": means.get(f"clip_ratio/{side}") for side in ("low", "high", "region")
            },
            f"{prefix}kl": means.get("kl"),
            f"ratio/{name}_mean": means.get("ratio"),
            f"ratio/{name}_deviation": means.get("ratio_deviation_max"),
        }
        found |= Numbers(values, dict.fromkeys(values, float(part.statistics.count)))
        found |= {f"{name}/loss": float(part.loss.detach())}
    return found


def step_sizes(credits: Sequence[Credit]) -> tuple[float, float]:
    """Text tokens, and denoising steps or image tokens, of a step over all processes, at least 1 each."""
    sizes = [(credit.objective, len(credit.segment.log_probs)) for credit in credits]
    texts, images = ranks.total(*(sum(size for name, size in sizes if name == kind) for kind in KINDS))
    return float(max(texts, 1)), float(max(images, 1))


def _reference(
    policy: Policy, segments: Sequence[Segment], losses: Mapping[Objective, ObjectiveLoss]
) -> dict[int, Replay]:
    """The reference policy's view of the segments that have a KL term, by their place; empty without one."""
    wanted = [i for i, segment in enumerate(segments) if losses[segment.objective].beta]
    if not wanted:
        return {}
    with torch.no_grad(), policy.reference():
        return dict(zip(wanted, policy.replay([segments[i] for i in wanted]), strict=True))


def _part(
    objective: Objective,
    loss: ObjectiveLoss,
    batch: Sequence[Credit],
    results: Sequence[Replay],
    reference: Mapping[int, Replay],
    normaliser: float,
) -> PolicyLoss:
    """The loss of those of a micro-batch's credits that have this objective."""
    new = {i: results[i].log_probs for i, credit in enumerate(batch) if credit.objective == objective}
    log_probs = torch.cat(list(new.values()))
    lengths = torch.tensor([len(values) for values in new.values()])
    inputs = LossInputs(
        log_probs=log_probs,
        old_log_probs=torch.cat([batch[i].segment.log_probs for i in new]).to(log_probs.device),
        advantages=torch.cat([torch.full_like(v, batch[i].advantage, requires_grad=False) for i, v in new.items()]),
        owner=torch.arange(len(new)).repeat_interleave(lengths).to(log_probs.device),
        epsilon=loss.epsilon,
        epsilon_high=loss.epsilon_high,
    )
    divergences = [_divergence(results[i], reference[i], loss.image_kl) for i in new if i in reference]
    return policy_loss(
        inputs,
        normaliser=normaliser,
        surrogate=loss.surrogate,
        beta=loss.beta,
        kl=torch.cat(divergences) if divergences else None,
    )


def _divergence(replay: Replay, base: Replay, kind: str) -> Tensor:
    """Of each element from the reference policy's, [S]: of denoising steps that of the means over the variance, or of
    the velocities; of words and image tokens it is estimated."""
    if not isinstance(replay, FlowReplay) or not isinstance(base, FlowReplay):
        return k3(replay.log_probs, base.log_probs)
    if kind == "velocity":
        return kl_velocity(replay.velocity, base.velocity)
    return kl_mean(replay.mean, base.mean, replay.std)
