"""Guards on the update and on the process: ratios, divergences, steps that do nothing, noise, memory."""

from __future__ import annotations

import numpy as np

from r3_rl.observe.guards.base import FEWEST, WINDOW, Found, Guard, steps_in_words
from r3_rl.observe.history import History

FAR = 1.0
"""Nats: k3 of a text token, and divergence of a denoising step, which healthy runs keep below 0.1."""
PINNED = 0.4
NEAR_EPSILON = 10.0
"""Gradient elements over AdamW's epsilon below which the epsilon slows a branch by a tenth and more."""
UNMOVED = 1e-6
"""Of the weights' size; a rate of 1e-6, the smallest in use, moves them by a thousand times as much."""
NUM_UNMOVED = 10
NUM_MEMORY = 40
WARM_UP = 10
GROWTH = 0.01
LEAK_BYTES = 1e6
"""A step. Python collects what only cycles hold now and then, a few hundred kilobytes a step of the embedded model."""


def _not_finite(history: History, ratio_tolerance: float) -> Found | None:
    if not (hit := history.not_finite):
        return None
    names = sorted({name for _, found in hit for name in found})
    return Found(
        message=f"{steps_in_words(len(hit))} logged a value that is not finite ({', '.join(names)}), the first is step "
        f"{hit[0][0]}",
        advice="look at that step's trajectories and scores, and lower training.learning_rate if the losses blew up",
    )


def _off_policy_ratio(history: History, ratio_tolerance: float) -> Found | None:
    worst = [
        (float(np.max(found.values)), int(found.steps[np.argmax(found.values)]), kind)
        for kind in ("text", "image")
        if len(found := history.series(f"ratio/{kind}_deviation"))
    ]
    if not worst or max(worst)[0] <= ratio_tolerance:
        return None
    deviation, step, kind = max(worst)
    return Found(
        message=f"the {kind} importance ratio was {deviation:.2g} away from 1 on a first pass (step {step}) and "
        f"rounding explains {ratio_tolerance:g} at most",
        advice="sampling and replay differ in guidance, temperature or positions: check the backbone's `replay` "
        "against its `write` and `draw`",
    )


def _kl_runaway(history: History, ratio_tolerance: float) -> Found | None:
    for name, what, beta in (("kl", "text token", "beta"), ("image/kl", "denoising step", "image_beta")):
        recent = history.series(name, FEWEST).values
        if recent.size == FEWEST and (middle := float(np.median(recent))) > FAR:
            return Found(
                message=f"the policy is {middle:.2g} nats a {what} away from the reference (median of {FEWEST} logged "
                "values)",
                advice=f"lower training.learning_rate or raise algorithm.{beta}, and resume from a checkpoint before",
            )
    return None


def _clip_pinned(history: History, ratio_tolerance: float) -> Found | None:
    for prefix, what, key in (("", "text tokens", "epsilon"), ("image/", "denoising steps", "image_epsilon")):
        recent = history.series(f"{prefix}clip_ratio/region_mean", WINDOW).values
        later = recent[recent > 0]  # on a first pass nothing is clipped
        if later.size >= FEWEST and (middle := float(np.median(later))) > PINNED:
            return Found(
                message=f"{middle:.0%} of the {what} were clipped when rollouts were used again, and taught nothing",
                advice=f"lower training.learning_rate or algorithm.num_iterations, or widen algorithm.{key}",
            )
    return None


def _no_change(history: History, ratio_tolerance: float) -> Found | None:
    norm = history.series("grad_norm")
    moved = history.series("weights/step_size").at(norm.steps[norm.values > 0])
    if len(moved) < NUM_UNMOVED or (total := float(moved.values.sum())) >= UNMOVED:
        return None
    return Found(
        message=f"{steps_in_words(len(moved))} with a gradient moved the weights by {total:.1g} of their size",
        advice="nothing is learned: raise training.learning_rate (and image_learning_rate), or shorten "
        "training.warmup_steps",
    )


def _near_epsilon(history: History, ratio_tolerance: float) -> Found | None:
    recent = history.series("grad/over_epsilon", WINDOW).values
    if recent.size < FEWEST or (middle := float(np.median(recent))) >= NEAR_EPSILON:
        return None
    return Found(
        message=f"in the last {steps_in_words(recent.size)} gradient elements of one branch were {middle:.2g} times "
        "AdamW's epsilon (median), so its learning rate does not mean what it says",
        advice="lower training.adam_epsilon, for example to 1e-12: image losses are means over all latent dimensions "
        "and have small gradients",
    )


def _equal_noise(history: History, ratio_tolerance: float) -> Found | None:
    shared = history.series("ranks/shared_noise")
    if not shared.values.any():
        return None
    step = int(shared.steps[np.flatnonzero(shared.values)[0]])
    return Found(
        message=f"processes drew the same noise for {shared.values.max():.0%} of their rollouts (first in step {step})",
        advice="several processes then do the work of one: this is a fault of the program, please report it",
    )


def _memory_growth(history: History, ratio_tolerance: float) -> Found | None:
    held = history.series("memory/held_bytes")
    if len(held) < WARM_UP + NUM_MEMORY:
        return None
    quarters = [float(np.median(part)) for part in np.array_split(held.values[WARM_UP:], 4)]
    rises = np.diff(quarters)
    # what fills up (a pool, a cache) rises less and less; what leaks rises by as much in the last part as in the first
    if rises.min() < GROWTH * quarters[-1] or rises[-1] < 0.75 * rises.mean():
        return None
    num_steps = int(held.steps[-1] - held.steps[WARM_UP])
    each = (quarters[-1] - quarters[0]) / (0.75 * num_steps)
    if each < LEAK_BYTES:
        return None
    return Found(
        message=f"memory grew from {quarters[0] / 1e9:.2f} to {quarters[-1] / 1e9:.2f} GB in {num_steps} steps, "
        f"{each / 1e6:.2g} MB a step",
        advice="something keeps what each step made: look at your scorers and callbacks (`isolate: true` gives a "
        "scorer its own process and limit)",
    )


NOT_FINITE = Guard(
    name="not_finite", words="values that are not finite", threshold="one logged value", look=_not_finite
)
EQUAL_NOISE = Guard(
    name="equal_noise",
    words="processes with equal noise",
    threshold="one rollout that has another process's noise",
    look=_equal_noise,
)
OFF_POLICY_RATIO = Guard(
    name="off_policy_ratio",
    words="importance ratio away from 1 on the first pass",
    threshold="a ratio further from 1 than 1e-4 in float32, 0.05 in bfloat16",
    look=_off_policy_ratio,
)
KL_RUNAWAY = Guard(
    name="kl_runaway",
    words="far from the reference policy",
    threshold=f"above {FAR:g} nats a text token, or a denoising step, in the median of {FEWEST} logged values",
    look=_kl_runaway,
)
CLIP_PINNED = Guard(
    name="clip_pinned",
    words="clip fraction pinned",
    threshold=f"above {PINNED:.0%} in the median of the passes after the first, at least {FEWEST} of {WINDOW} logged "
    "values",
    look=_clip_pinned,
)
NO_CHANGE = Guard(
    name="no_change",
    words="a learning rate that changes nothing",
    threshold=f"{NUM_UNMOVED} and more logged values with a gradient, whose steps add up to less than {UNMOVED:g} of "
    "the weights' size",
    look=_no_change,
)
NEAR_THE_EPSILON = Guard(
    name="near_epsilon",
    words="gradients near the optimiser's epsilon",
    threshold=f"below {NEAR_EPSILON:g} times AdamW's epsilon in the median of {WINDOW} logged values, at least "
    f"{FEWEST}",
    look=_near_epsilon,
)
MEMORY_GROWTH = Guard(
    name="memory_growth",
    words="memory growing by step",
    threshold=f"{WARM_UP + NUM_MEMORY} and more logged values: medians of four quarters after the first {WARM_UP} each "
    f"rise by {GROWTH:.0%} and more, the last by at least 0.75 of the mean, {LEAK_BYTES / 1e6:g} MB a step and more in "
    "all",
    look=_memory_growth,
)
