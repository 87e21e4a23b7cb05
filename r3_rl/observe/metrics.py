"""The one table of metric names: what each says, and how its values combine (`observe.numbers` combines them).

`docs/metrics.md` is written from this table (`python -m r3_rl.observe.metrics`), and a test compares the two.
Names are TRL's wherever the meaning is the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

How = Literal["mean", "sum", "max", "last", "per step"]
"""`mean`: weighted by the items behind each value, where their number is known. `per step`: the sum over the steps
divided by their number, those without a value included."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One row of the table."""

    name: str
    """The key in `metrics.jsonl`; `{...}` stands for a scorer's or a stage's name."""
    unit: str
    """`share` is 0 to 1, `s` seconds, `1` a plain number."""
    meaning: str
    batches: How = "mean"
    """Over the micro-batches and rounds of a step in one process."""
    ranks: How = "mean"
    """Over the processes of a step."""
    steps: How = "mean"
    """Over the steps of a line, each of which counts alike; those without a value count only in `per step`."""


def _metric(
    name: str, unit: str, meaning: str, *, batches: How = "mean", ranks: How = "mean", steps: How = "mean"
) -> Metric:
    return Metric(name=name, unit=unit, meaning=meaning, batches=batches, ranks=ranks, steps=steps)


def _loss(name: str, meaning: str) -> Metric:
    """Micro-batches and ranks are divided by the size of the whole step, so their losses add up."""
    return _metric(name, "1", meaning, batches="sum", ranks="sum")


def _peak(name: str, unit: str, meaning: str) -> Metric:
    return _metric(name, unit, meaning, batches="max", ranks="max", steps="max")


def _seconds(name: str, meaning: str) -> Metric:
    """Ranks work side by side, so a step takes as long as its slowest."""
    return _metric(name, "s", meaning, batches="sum", ranks="max", steps="per step")


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
        _metric(
            "tree/pool_size",
            "nodes",
            "Nodes in the pools that refinement groups start from.",
            batches="last",
            ranks="sum",
            steps="last",
        ),
        _metric("tree/frac_perfect", "share", "Nodes drawn from the pool whose score is already 1."),
    ),
    "Text": (
        _metric("kl", "nats", "Text tokens: k3 estimate of the KL divergence from the reference policy."),
        _metric("entropy", "nats", "Mean -log p of all sampled text tokens: an unbiased estimate of their entropy."),
        _metric("clip_ratio/low_mean", "share", "Text tokens clipped from below."),
        _metric("clip_ratio/high_mean", "share", "Text tokens clipped from above."),
        _metric("clip_ratio/region_mean", "share", "Text tokens clipped on either side."),
        _metric("completions/mean_length", "tokens", "Mean length of the sampled texts."),
        _peak("completions/max_length", "tokens", "Longest sampled text."),
        _metric("completions/clipped_ratio", "share", "Texts that ran into the token limit without ending."),
        _loss("text/loss", "Loss of the text segments (plan and critique) before its weight."),
    ),
    "Image": (
        _loss("image/loss", "Loss of the image segments (draft and refinement) before its weight."),
        _metric("image/kl", "1", "Denoising steps: divergence of the step from the reference policy's step."),
        _metric("image/clip_ratio/low_mean", "share", "Denoising steps clipped from below."),
        _metric("image/clip_ratio/high_mean", "share", "Denoising steps clipped from above."),
        _metric("image/clip_ratio/region_mean", "share", "Denoising steps clipped on either side."),
        _metric("image/log_prob_mean", "1", "Mean log-prob of the scored denoising steps."),
        _metric("image/count", "images", "Images drawn in the step.", batches="sum", ranks="sum", steps="per step"),
    ),
    "Answers": (
        _metric("answer/frac_right", "share", "Answers to questions that are right, of a step that trains them."),
        _metric("answer/frac_well_formed", "share", "Answers that ended and say something after their thought."),
    ),
    "Importance ratio": (
        _metric("ratio/text_mean", "1", "Mean importance ratio of text tokens; 1 on the first pass."),
        _peak("ratio/text_deviation", "1", "Largest |ratio - 1| of a text token on a first pass without dropout."),
        _metric("ratio/image_mean", "1", "Mean importance ratio of denoising steps; 1 on the first pass."),
        _peak("ratio/image_deviation", "1", "Largest |ratio - 1| of a denoising step, likewise."),
    ),
    "Gradient": (
        _metric("grad/cosine", "1", "Cosine of the understanding and the generation gradient; below 0 they conflict."),
        _metric("grad/cosine/{stage}", "1", "Cosine of the gradients of two stages, such as `plan_draft`."),
        _metric(
            "grad/norm_{objective}",
            "1",
            "Norm of the gradient of an objective: understanding (texts), generation "
            "(images), or a stage (`balance.objectives`).",
        ),
        _metric("grad/weight_{objective}", "1", "What the aggregator multiplied an objective's gradient with."),
        _metric(
            "gate/{stage}",
            "share",
            "How much of its own LoRA a task takes, averaged over the layers (`balance.routing: routed`).",
            steps="last",
        ),
        _metric(
            "gate/imbalance", "1", "How unevenly the tasks' LoRAs are used: 0 alike, 4 all tasks one.", steps="last"
        ),
        _metric("grad_norm", "1", "Norm of the whole gradient before clipping."),
        _metric(
            "grad/over_epsilon",
            "1",
            "Root mean square of a gradient element over AdamW's epsilon, of the branch with the smallest; the epsilon "
            "lowers the rate if it is below 10.",
        ),
        _loss("loss", "Weighted sum that was differentiated."),
        _metric(
            "weights/step_size",
            "1",
            "Norm of the step over that of the trained weights, from at most 1,024 elements of each tensor.",
        ),
        _metric("learning_rate", "1", "Learning rate of the step.", steps="last"),
        _metric(
            "num_tokens",
            "tokens",
            "Text tokens learned from since the start, on all ranks.",
            batches="sum",
            ranks="sum",
            steps="last",
        ),
    ),
    "Time": (
        _seconds("time/{stage}_s", "Seconds of a stage: draft (plans included), critique, refine, update."),
        _seconds("time/score_s", "Seconds that the step waited for scorers after the last image was drawn."),
        _seconds("time/held_out_s", "Seconds that the step waited for held-out scorers after its update."),
        _seconds("time/step_s", "Seconds of the whole step."),
        _peak("memory/peak_bytes", "bytes", "Largest memory that one process held so far."),
        _peak(
            "memory/held_bytes",
            "bytes",
            "Memory in use at the end of the step, the largest of the processes: on a GPU by tensors, else what the "
            "allocator has handed out.",
        ),
        _metric(
            "ranks/shared_noise", "share", "Rollouts of a process whose noise another one drew too (several ranks)."
        ),
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
        "The three columns say how values combine: *batches* over the micro-batches and rounds of a step in one",
        "process, *ranks* over the processes of a step, *steps* over the steps of a line when `observe.log_every` is",
        "above 1. A `mean` over batches and ranks is weighted by the items behind each value; over steps it is that",
        "of the steps that have a value, and `per step` that of all.",
    ]
    head = ["| name | unit | batches | ranks | steps | meaning |", "|---|---|---|---|---|---|"]
    for title, section in SECTIONS.items():
        lines += ["", f"## {title}", "", *head]
        lines += [
            f"| `{row.name}` | {row.unit} | {row.batches} | {row.ranks} | {row.steps} | {row.meaning} |"
            for row in section
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(metrics_page(), end="")
