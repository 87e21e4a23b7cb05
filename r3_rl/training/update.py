"""The update: credits -> micro-batches -> accumulated gradient.

Micro-batches are packed from segments up to a token budget; a plan and the draft drawn after it travel together, so
that one pass scores both. Losses are normalised by the whole step, so any packing gives the same gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from r3_rl.algorithm.loss import LossStatistics, image_loss, text_loss
from r3_rl.errors import RunError
from r3_rl.flow.sde import kl_mean
from r3_rl.policy.base import ImageReplay, Policy
from r3_rl.training.credit import Credit
from r3_rl.types import ImageSegment, Segment, TextPiece, TextSegment


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Clip ranges, KL coefficients and weights (the `algorithm` section of a recipe)."""

    epsilon: float = 0.2
    epsilon_high: float | None = None
    image_epsilon: float = 0.2
    beta: float = 0.0
    image_beta: float = 0.0
    text_weight: float = 1.0
    image_weight: float = 2.0
    token_budget: int = 4096


@dataclass(kw_only=True)
class UpdateStatistics:
    """Sums over the micro-batches of a step."""

    text: LossStatistics | None = None
    image: LossStatistics | None = None
    loss: float = 0.0
    num_micro_batches: int = 0

    def merged(self, other: UpdateStatistics) -> UpdateStatistics:
        """Of both halves of a step."""
        return UpdateStatistics(
            text=_add(self.text, other.text),
            image=_add(self.image, other.image),
            loss=self.loss + other.loss,
            num_micro_batches=self.num_micro_batches + other.num_micro_batches,
        )

    def metrics(self) -> dict[str, float]:
        """The step's numbers by their names in docs/metrics.md."""
        out: dict[str, float] = {"loss": self.loss}
        if self.text is not None:
            means = self.text.means()
            out |= {f"clip_ratio/{side}_mean": means[f"clip_ratio/{side}"] for side in ("low", "high", "region")}
            out |= {"kl": means["kl"], "ratio/text_mean": means["ratio"]}
            out["ratio/text_deviation"] = means["ratio_deviation_max"]
        if self.image is not None:
            means = self.image.means()
            out |= {f"image/clip_ratio/{side}_mean": means[f"clip_ratio/{side}"] for side in ("low", "high", "region")}
            out |= {"image/kl": means["kl"], "ratio/image_mean": means["ratio"]}
            out["ratio/image_deviation"] = means["ratio_deviation_max"]
        return out


def micro_batches(policy: Policy, credits: Sequence[Credit], token_budget: int) -> list[list[Credit]]:
    """Packs credits up to the budget, first fit over segments sorted by stage and length; a plan stays with its draft."""
    bundles = _bundles(credits)
    sized = sorted(((sum(policy.num_tokens(c.segment) for c in b), b) for b in bundles), key=lambda pair: -pair[0])
    batches: list[list[Credit]] = []
    room: list[int] = []
    for size, bundle in sized:
        # like lengths lie side by side: only the newest batch is tried
        if batches and room[-1] >= size:
            batches[-1].extend(bundle)
            room[-1] -= size
        else:
            batches.append(list(bundle))
            room.append(max(token_budget - size, 0))
    return batches


def _bundles(credits: Sequence[Credit]) -> list[list[Credit]]:
    by_text = {id(c.segment.token_ids): [c] for c in credits if isinstance(c.segment, TextSegment)}
    bundles = list(by_text.values())
    for credit in credits:
        if isinstance(credit.segment, ImageSegment):
            last = credit.segment.context[-1] if credit.segment.context else None
            host = by_text.get(id(last.token_ids)) if isinstance(last, TextPiece) and last.token_ids else None
            if host is not None and credit.stage == "draft":
                host.append(credit)
            else:
                bundles.append([credit])
    return bundles


def accumulate(
    policy: Policy,
    credits: Sequence[Credit],
    settings: LossSettings,
    *,
    backward: Callable[[Tensor], None],
    normalisers: tuple[float, float] | None = None,
) -> UpdateStatistics:
    """Adds the step's gradient to the parameters, micro-batch by micro-batch.

    `normalisers`: (text tokens, denoising steps) of the step over all processes; by default those of the credits.
    Raises RunError when a loss is not finite, before its gradient is taken.
    """
    num_text, num_image = normalisers or step_sizes(credits)
    statistics = UpdateStatistics()
    for batch in micro_batches(policy, credits, settings.token_budget):
        segments = [c.segment for c in batch]
        results = policy.replay(segments)
        reference = _reference(policy, segments, settings)
        loss, text, image = _loss(batch, results, reference, settings, num_text, num_image)
        if not torch.isfinite(loss):
            raise RunError(
                "the loss is not finite",
                hint="lower training.learning_rate or eta; the last checkpoint is good",
            )
        backward(loss)
        statistics.loss += float(loss.detach())
        statistics.num_micro_batches += 1
        statistics.text = _add(statistics.text, text)
        statistics.image = _add(statistics.image, image)
    return statistics


def step_sizes(credits: Sequence[Credit]) -> tuple[float, float]:
    """Text tokens and denoising steps of a step, at least 1 each."""
    text = sum(len(c.segment.token_ids) for c in credits if isinstance(c.segment, TextSegment))
    image = sum(len(c.segment.times) for c in credits if isinstance(c.segment, ImageSegment))
    return float(max(text, 1)), float(max(image, 1))


def _add(total: LossStatistics | None, more: LossStatistics | None) -> LossStatistics | None:
    return more if total is None else total if more is None else total + more


def _reference(
    policy: Policy, segments: Sequence[Segment], settings: LossSettings
) -> Sequence[Tensor | ImageReplay] | None:
    if settings.beta == 0 and settings.image_beta == 0:
        return None
    with torch.no_grad(), policy.reference():
        return policy.replay(segments)


def _loss(
    batch: Sequence[Credit],
    results: Sequence[Tensor | ImageReplay],
    reference: Sequence[Tensor | ImageReplay] | None,
    settings: LossSettings,
    num_text: float,
    num_image: float,
) -> tuple[Tensor, LossStatistics | None, LossStatistics | None]:
    texts = [i for i, r in enumerate(results) if isinstance(r, Tensor)]
    images = [i for i, r in enumerate(results) if isinstance(r, ImageReplay)]
    terms: list[Tensor] = []
    text_statistics = image_statistics = None
    if texts:
        new = [results[i] for i in texts]
        out = text_loss(
            torch.cat(new),  # type: ignore[arg-type]
            torch.cat([batch[i].segment.log_probs for i in texts]).to(new[0].device),  # type: ignore[union-attr]
            _spread(batch, texts, results),
            normaliser=num_text,
            epsilon=settings.epsilon,
            epsilon_high=settings.epsilon_high,
            beta=settings.beta,
            reference_log_probs=torch.cat([reference[i] for i in texts]) if reference and settings.beta else None,  # type: ignore[misc]
        )
        terms.append(settings.text_weight * out.loss)
        text_statistics = out.statistics
    if images:
        replays: list[ImageReplay] = [results[i] for i in images]  # type: ignore[misc]
        kl = None
        if reference and settings.image_beta:
            others: list[ImageReplay] = [reference[i] for i in images]  # type: ignore[misc]
            kl = torch.cat([kl_mean(a.mean, b.mean, a.std) for a, b in zip(replays, others, strict=True)])
        out = image_loss(
            torch.cat([r.log_probs for r in replays]),
            torch.cat([batch[i].segment.log_probs for i in images]).to(replays[0].log_probs.device),
            _spread(batch, images, results),
            normaliser=num_image,
            epsilon=settings.image_epsilon,
            beta=settings.image_beta,
            kl=kl,
        )
        terms.append(settings.image_weight * out.loss)
        image_statistics = out.statistics
    return torch.stack(terms).sum(), text_statistics, image_statistics


def _spread(batch: Sequence[Credit], rows: Sequence[int], results: Sequence[Tensor | ImageReplay]) -> Tensor:
    """Each segment's advantage repeated over its tokens or steps."""
    parts = []
    for i in rows:
        r = results[i]
        values = r if isinstance(r, Tensor) else r.log_probs
        parts.append(torch.full(values.shape, batch[i].advantage, device=values.device))
    return torch.cat(parts)
