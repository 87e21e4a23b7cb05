"""The one table of metric names, and the averaging over micro-batches that follows it.

`docs/metrics.md` is written from this table (`python -m r3_rl.observe.metrics`), and a test compares the two.
Names are TRL's wherever the meaning is the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One row of the table."""

    name: str
    """The key in `metrics.jsonl`; `{...}` stands for a scorer's or a stage's name."""
    unit: str
    """`share` is 0 to 1, `s` seconds, `1` a plain number."""
    meaning: str
    combine: str = "mean"
    """How values within a step become one: `mean`, `max`, `min`, `sum` or `last`."""


def _metric(name: str, unit: str, meaning: str, combine: str = "mean") -> Metric:
    return Metric(name=name, unit=unit, meaning=meaning, combine=combine)


SECTIONS: Mapping[str, tuple[Metric, ...]] = {
    "Reward": (
        _metric("reward", "1", "Mean reward the algorithm saw, over the rollouts of the step."),
        _metric("reward_std", "1", "Standard deviation of the reward inside a group, averaged over groups."),
        _metric("frac_reward_zero_std", "share", "Groups whose rewards are all equal: they teach nothing."),
        _metric("rewards/{name}/mean", "1", "Raw score of one training scorer, before weights."),
        _metric("rewards/{name}/std", "1", "Standard deviation of that score over the step."),
        _metric("rewards/{name}/missing_fraction", "share", "Scores of that scorer that are missing where it applies."),
        _metric("rewards/{name}/time_s", "s", "Seconds that its calls ran, those during drawing included."),
        _metric("weighted_rewards/{name}/mean", "1", "What that scorer contributed to the total, after its weight."),
        _metric("eval_rewards/{name}/mean", "1", "Raw score of a held-out scorer, which never enters the reward."),
        _metric("eval_rewards/{name}/std", "1", "Standard deviation of that score over the step."),
        _metric("eval_rewards/{name}/missing_fraction", "share", "Its scores that are missing where it applies."),
        _metric("eval_rewards/{name}/time_s", "s", "Seconds spent in it."),
        _metric("scores/missing_fraction", "share", "Scores that failed or did not apply; never counted as 0."),
        _metric("scores/cache_hit_fraction", "share", "Scores answered from the cache."),
    ),
    "Reflection": (
        _metric("refine/draft_score", "1", "Mean panel score of the drafts: read it beside the gain."),
        _metric("refine/final_score", "1", "Mean panel score of the last image of a trajectory."),
        _metric("refine/gain_mean", "1", "Mean of V1 - V0 over the rollouts; 0 where nothing was drawn."),
        _metric("refine/frac_improved", "share", "Rollouts whose refinement beats the image that was looked at."),
        _metric("refine/frac_regressed", "share", "Rollouts whose refinement scores below it."),
        _metric("refine/frac_stopped", "share", "Critiques that ended the loop with a well-formed stop."),
        _metric("refine/frac_well_formed", "share", "Texts that close their thoughts and then say one thing."),
        _metric("refine/frac_wrong_edited", "share", "Wrong images that the critique wants edited."),
        _metric("refine/frac_right_kept", "share", "Right images that the critique leaves alone."),
        _metric("tree/pool_size", "nodes", "Nodes in the pool that refinement groups start from.", "last"),
        _metric("tree/frac_perfect", "share", "Nodes drawn from the pool whose score is already 1."),
    ),
    "Text": (
        _metric("kl", "nats", "Text tokens: k3 estimate of the KL divergence from the reference policy."),
        _metric("entropy", "nats", "Mean -log p of the sampled text tokens: an unbiased estimate of their entropy."),
        _metric("clip_ratio/low_mean", "share", "Text tokens clipped from below."),
        _metric("clip_ratio/high_mean", "share", "Text tokens clipped from above."),
        _metric("clip_ratio/region_mean", "share", "Text tokens clipped on either side."),
        _metric("completions/mean_length", "tokens", "Mean length of the sampled texts."),
        _metric("completions/max_length", "tokens", "Longest sampled text.", "max"),
        _metric("completions/clipped_ratio", "share", "Texts that ran into the token limit without ending."),
        _metric("text/loss", "1", "Loss of the text segments (plan and critique) before its weight."),
    ),
    "Image": (
        _metric("image/loss", "1", "Loss of the image segments (draft and refinement) before its weight."),
        _metric("image/kl", "1", "Denoising steps: divergence of the step from the reference policy's step."),
        _metric("image/clip_ratio/low_mean", "share", "Denoising steps clipped from below."),
        _metric("image/clip_ratio/high_mean", "share", "Denoising steps clipped from above."),
        _metric("image/clip_ratio/region_mean", "share", "Denoising steps clipped on either side."),
        _metric("image/log_prob_mean", "1", "Mean log-prob of the scored denoising steps."),
        _metric("image/count", "images", "Images drawn in the step.", "sum"),
    ),
    "Importance ratio": (
        _metric("ratio/text_mean", "1", "Mean importance ratio of text tokens; 1 on the first pass."),
        _metric(
            "ratio/text_deviation",
            "1",
            "Largest |ratio - 1| of a text token on the first pass; absent with dropout.",
            "max",
        ),
        _metric("ratio/image_mean", "1", "Mean importance ratio of denoising steps; 1 on the first pass."),
        _metric(
            "ratio/image_deviation", "1", "Largest |ratio - 1| of a denoising step on the first pass; as above.", "max"
        ),
    ),
    "Gradient": (
        _metric("grad/cosine", "1", "Cosine of the understanding and the generation gradient; below 0 they conflict."),
        _metric("grad/norm_understanding", "1", "Norm of the gradient of the text losses."),
        _metric("grad/norm_generation", "1", "Norm of the gradient of the image losses."),
        _metric("grad_norm", "1", "Norm of the whole gradient before clipping."),
        _metric(
            "grad/over_epsilon",
            "1",
            "Root mean square of a gradient element over AdamW's epsilon, of the branch with the smallest; the epsilon "
            "lowers the rate if it is below 10.",
        ),
        _metric("loss", "1", "Weighted sum that was differentiated."),
        _metric("learning_rate", "1", "Learning rate of the step.", "last"),
        _metric("epoch", "1", "Passes over the prompts so far.", "last"),
        _metric("num_tokens", "tokens", "Text tokens learned from since the start.", "last"),
    ),
    "Time": (
        _metric("time/{stage}_s", "s", "Seconds of a stage: draft (plans included), critique, refine, update.", "sum"),
        _metric("time/score_s", "s", "Seconds that the step waited for scorers after the last image was drawn.", "sum"),
        _metric("time/step_s", "s", "Seconds of the whole step.", "sum"),
        _metric("memory/peak_bytes", "bytes", "Largest memory held so far.", "max"),
    ),
}

METRICS: tuple[Metric, ...] = tuple(metric for section in SECTIONS.values() for metric in section)
_EXACT = {metric.name: metric for metric in METRICS if "{" not in metric.name}
_PATTERNS = tuple(
    (re.compile(re.sub(r"\\\{\w+\\\}", r"[^/]+", re.escape(metric.name))), metric)
    for metric in METRICS
    if "{" in metric.name
)


@lru_cache(maxsize=4096)
def find_metric(name: str) -> Metric | None:
    """The row that describes a metric, or None for a name that is not in the table (a scorer's own `log_metric`).

    >>> find_metric("rewards/shapes/mean").meaning
    'Raw score of one training scorer, before weights.'
    >>> find_metric("no/such/thing") is None
    True
    """
    if name in _EXACT:
        return _EXACT[name]
    return next((metric for pattern, metric in _PATTERNS if pattern.fullmatch(name)), None)


def unknown_names(names: Iterable[str]) -> list[str]:
    """Names that the table lacks, sorted: keys are stable, so a test of each room expects none.

    >>> unknown_names(["reward", "reward_mean"])
    ['reward_mean']
    """
    return sorted({name for name in names if find_metric(name) is None})


class Averages:
    """Collects the values of one step, micro-batch by micro-batch, and combines each as the table says.

    A mean is weighted: mean = sum(weight * value) / sum(weight), so micro-batches of unlike size average as one batch.
    A missing value (None) enters nothing. A value that is not finite stays visible: it makes the mean not finite.

    >>> averages = Averages()
    >>> averages.add({"kl": 0.2, "ratio/text_deviation": 1e-6}, weight=3)
    >>> averages.add({"kl": 0.4, "ratio/text_deviation": 4e-6}, weight=1)
    >>> averages.pop()
    {'kl': 0.25, 'ratio/text_deviation': 4e-06}
    >>> averages.pop()
    {}
    """

    def __init__(self) -> None:
        self._values: dict[str, list[tuple[float, float]]] = {}

    def add(self, values: Mapping[str, Any], weight: float = 1.0) -> None:
        """Take the values of a micro-batch (numbers, or tensors of one element); `weight` >= 0 counts its samples."""
        assert weight >= 0, weight
        for name, value in values.items():
            if value is not None and weight > 0:
                self._values.setdefault(name, []).append((float(value), float(weight)))

    def pop(self) -> dict[str, float]:
        """The combined values since the last call, and start afresh."""
        combined = {name: _combine(name, pairs) for name, pairs in self._values.items()}
        self._values = {}
        return combined


def _combine(name: str, pairs: list[tuple[float, float]]) -> float:
    metric = find_metric(name)
    how = metric.combine if metric else "mean"
    values = [value for value, _ in pairs]
    if how == "last":
        return values[-1]
    if how == "sum":
        return math.fsum(values)
    if how in ("max", "min") and not any(math.isnan(value) for value in values):
        return max(values) if how == "max" else min(values)
    return sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)


def metrics_page() -> str:
    """The text of `docs/metrics.md`."""
    lines = [
        "# Metrics",
        "",
        "Every name that `metrics.jsonl` may hold. One line is one step; `step` counts from 1. Names are TRL's",
        "wherever the meaning is the same. This page is written from the table in `r3_rl/observe/metrics.py`: change",
        "it there, then run `python -m r3_rl.observe.metrics > docs/metrics.md`.",
        "",
        "A value that was not finite is written as `null`, and its name stands in the line's `not_finite` list. A",
        "value that did not occur in a step (no refinement was drawn, say) is absent, never 0. Names outside the table",
        "come from a scorer's own `log_metric`.",
    ]
    for title, section in SECTIONS.items():
        lines += ["", f"## {title}", "", "| name | unit | over a step | meaning |", "|---|---|---|---|"]
        lines += [f"| `{row.name}` | {row.unit} | {row.combine} | {row.meaning} |" for row in section]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(metrics_page(), end="")
