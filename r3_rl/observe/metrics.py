"""The one table of metric names, and how values of rounds, processes and steps become one.

`docs/metrics.md` is written from this table (`python -m r3_rl.observe.metrics`), and a test compares the two.
Names are TRL's wherever the meaning is the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
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
    """How the values of one step's rounds and processes become one: `mean` (weighted where the number of items behind
    a value is known), `max` or `sum`."""
    over_steps: str = "mean"
    """How the steps of a line become one: `mean` of the steps that have a value, `per step` (a step without one counts
    as 0), `max` or `last`."""


def _metric(name: str, unit: str, meaning: str, combine: str = "mean", over_steps: str = "mean") -> Metric:
    return Metric(name=name, unit=unit, meaning=meaning, combine=combine, over_steps=over_steps)


def _peak(name: str, unit: str, meaning: str) -> Metric:
    return _metric(name, unit, meaning, "max", "max")


def _seconds(name: str, meaning: str) -> Metric:
    """Processes work side by side, so a step takes as long as its slowest."""
    return _metric(name, "s", meaning, "max", "per step")


SECTIONS: Mapping[str, tuple[Metric, ...]] = {
    "Reward": (
        _metric("reward", "1", "Mean reward the algorithm saw, over the rollouts of the step."),
        _metric("reward_std", "1", "Standard deviation of the reward inside a group, averaged over groups."),
        _metric("frac_reward_missing", "share", "Rollouts whose reward is missing: they teach nothing."),
        _metric("frac_reward_zero_std", "share", "Groups whose rewards are all equal: they teach nothing."),
        _metric("rewards/{name}/mean", "1", "Raw score of one training scorer, before weights."),
        _metric("rewards/{name}/std", "1", "Standard deviation of that score over the step."),
        _metric("rewards/{name}/missing_fraction", "share", "Scores of that scorer that are missing where it applies."),
        _seconds("rewards/{name}/time_s", "Seconds that its calls ran, those during drawing included."),
        _metric("weighted_rewards/{name}/mean", "1", "What that scorer contributed to the total, after its weight."),
        _metric("eval_rewards/{name}/mean", "1", "Raw score of a held-out scorer, which never enters the reward."),
        _metric("eval_rewards/{name}/std", "1", "Standard deviation of that score over the step."),
        _metric("eval_rewards/{name}/missing_fraction", "share", "Its scores that are missing where it applies."),
        _seconds("eval_rewards/{name}/time_s", "Seconds spent in it."),
        _metric(
            "scores/missing_fraction", "share", "Scores of the panel that are missing where a scorer applies; never 0."
        ),
        _metric("scores/cache_hit_fraction", "share", "Scores answered from the cache."),
    ),
    "Reflection": (
        _metric("refine/draft_score", "1", "Mean panel score of the drafts: read it beside the gain."),
        _metric("refine/final_score", "1", "Mean panel score of the last image of a trajectory, in whichever round."),
        _metric(
            "refine/gain_mean",
            "1",
            "Mean over rollouts of the last image's score minus the first's; 0 for a stop.",
        ),
        _metric("refine/frac_improved", "share", "Rollouts whose last image beats the first (`full`: the draft)."),
        _metric("refine/frac_regressed", "share", "Rollouts whose last image scores below it."),
        _metric("refine/frac_stopped", "share", "Critiques of all rounds that ended the loop with a well-formed stop."),
        _metric("refine/frac_well_formed", "share", "Texts that close their thoughts and then say one thing."),
        _metric("refine/frac_wrong_edited", "share", "Wrong images that the critique wants edited."),
        _metric("refine/frac_right_kept", "share", "Right images that the critique leaves alone."),
        _metric("tree/pool_size", "nodes", "Nodes in the pools that refinement groups start from.", "sum", "last"),
        _metric("tree/frac_perfect", "share", "Nodes drawn from the pool whose score is already 1."),
    ),
    "Text": (
        _metric("kl", "nats", "Text tokens: k3 estimate of the KL divergence from the reference policy."),
        _metric("entropy", "nats", "Mean -log p of the sampled text tokens: an unbiased estimate of their entropy."),
        _metric("clip_ratio/low_mean", "share", "Text tokens clipped from below."),
        _metric("clip_ratio/high_mean", "share", "Text tokens clipped from above."),
        _metric("clip_ratio/region_mean", "share", "Text tokens clipped on either side."),
        _metric("completions/mean_length", "tokens", "Mean length of the sampled texts."),
        _peak("completions/max_length", "tokens", "Longest sampled text."),
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
        _metric("image/count", "images", "Images drawn in the step.", "sum", "per step"),
    ),
    "Importance ratio": (
        _metric("ratio/text_mean", "1", "Mean importance ratio of text tokens; 1 on the first pass."),
        _peak("ratio/text_deviation", "1", "Largest |ratio - 1| of a text token on a first pass without dropout."),
        _metric("ratio/image_mean", "1", "Mean importance ratio of denoising steps; 1 on the first pass."),
        _peak("ratio/image_deviation", "1", "Largest |ratio - 1| of a denoising step, likewise."),
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
        _metric("learning_rate", "1", "Learning rate of the step.", over_steps="last"),
        _metric("epoch", "1", "Passes over the prompts so far.", over_steps="last"),
        _metric("num_tokens", "tokens", "Text tokens learned from since the start, of all processes.", "max", "last"),
    ),
    "Time": (
        _seconds("time/{stage}_s", "Seconds of a stage: draft (plans included), critique, refine, update."),
        _seconds("time/score_s", "Seconds that the step waited for scorers after the last image was drawn."),
        _seconds("time/held_out_s", "Seconds that the step waited for held-out scorers after its update."),
        _seconds("time/step_s", "Seconds of the whole step."),
        _peak("memory/peak_bytes", "bytes", "Largest memory that one process held so far."),
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


def combine(rows: Sequence[Mapping[str, Any]], sizes: Sequence[Mapping[str, float]] = ()) -> dict[str, float]:
    """The values of one step's rounds or processes as one, each as the table says.

    mean = sum(size * value) / sum(size), so rounds and processes of unlike size give what one batch would give. A
    missing value (None) enters nothing. A value that is not finite stays visible: it makes the mean not finite.

    Args:
        rows: one a round or process; numbers, or tensors of one element.
        sizes: for each row the number of items behind a value, where it is known; else 1.

    >>> rows = [{"kl": 0.2, "time/step_s": 2.0, "image/count": 8}, {"kl": 0.4, "time/step_s": 3.0, "image/count": 8}]
    >>> combine(rows, [{"kl": 3}, {"kl": 1}])
    {'kl': 0.25, 'time/step_s': 3.0, 'image/count': 16.0}
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for row, size in zip(rows, sizes or [{}] * len(rows), strict=True):
        for name, value in row.items():
            if value is not None and (weight := float(size.get(name, 1))) > 0:
                found.setdefault(name, []).append((float(value), weight))
    return {name: _joined(_rule(name, "combine"), pairs, len(rows)) for name, pairs in found.items()}


class Averages:
    """Collects the values of the steps between two lines, and joins each as the table says.

    >>> averages = Averages()
    >>> averages.add({"kl": 0.2, "time/refine_s": 4.0, "num_tokens": 10})
    >>> averages.add({"kl": 0.4, "num_tokens": 20})
    >>> {name: round(value, 3) for name, value in averages.pop().items()}
    {'kl': 0.3, 'time/refine_s': 2.0, 'num_tokens': 20.0}
    >>> averages.pop()
    {}
    """

    def __init__(self) -> None:
        self._values: dict[str, list[tuple[float, float]]] = {}
        self._num_steps = 0

    def add(self, values: Mapping[str, Any]) -> None:
        """Take the values of a step: numbers, or tensors of one element; None is missing."""
        self._num_steps += 1
        for name, value in values.items():
            if value is not None:
                self._values.setdefault(name, []).append((float(value), 1.0))

    def pop(self) -> dict[str, float]:
        """The joined values since the last call, and start afresh."""
        joined = {n: _joined(_rule(n, "over_steps"), pairs, self._num_steps) for n, pairs in self._values.items()}
        self._values, self._num_steps = {}, 0
        return joined


def _rule(name: str, which: str) -> str:
    metric = find_metric(name)
    return str(getattr(metric, which)) if metric else "mean"


def _joined(how: str, pairs: list[tuple[float, float]], num_rows: int) -> float:
    values = [value for value, _ in pairs]
    if how == "last":
        return values[-1]
    if how == "sum":
        return math.fsum(values)
    if how == "per step":
        return math.fsum(values) / num_rows
    if how == "max" and not any(math.isnan(value) for value in values):
        return max(values)
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
        "",
        "*In a step* says how the values of its processes (and of the rounds of schedule `full`) become one, *in a",
        "line* how the steps of a line do when `observe.log_every` is above 1; `per step` is a mean over all.",
    ]
    head = ["| name | unit | in a step | in a line | meaning |", "|---|---|---|---|---|"]
    for title, section in SECTIONS.items():
        lines += ["", f"## {title}", "", *head]
        lines += [
            f"| `{row.name}` | {row.unit} | {row.combine} | {row.over_steps} | {row.meaning} |" for row in section
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(metrics_page(), end="")
