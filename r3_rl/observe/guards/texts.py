"""Guards on what the policy says: form, entropy, and when it ends the loop."""

from __future__ import annotations

import numpy as np

from r3_rl.observe.guards.base import FEWEST, Found, Guard
from r3_rl.observe.history import History, Series

MOST_MALFORMED = 0.5
NO_ENTROPY = 0.01
"""Nats a token; critiques of the embedded model, whose words are few, have 0.03 and more."""
OF_THE_START = 0.1
NUM_STOP_RATES = 10
ALWAYS = 0.99
NEVER = 0.01


def _by_kind(history: History, name: str) -> list[tuple[str, Series]]:
    """A metric of steps with critiques and of those without: plans and critiques differ in entropy and form."""
    found, critiques = history.series(name), history.series("refine/frac_stopped").steps
    with_critiques, without = found.at(critiques), found.at(critiques, present=False)
    return [("texts" if not len(without) else "critiques", with_critiques), ("plans", without)]


def _malformed(history: History, ratio_tolerance: float) -> Found | None:
    for kind, formed in _by_kind(history, "refine/frac_well_formed"):
        recent = formed.last(FEWEST)
        malformed = 1 - float(recent.values.mean()) if len(recent) >= FEWEST else 0.0
        if malformed > MOST_MALFORMED:
            cut = history.series("completions/clipped_ratio").at(recent.steps).values
            long = cut.size > 0 and float(cut.mean()) > MOST_MALFORMED
            what = f", {cut.mean():.0%} cut off at the token limit" if long else ""
            stage = "critique" if kind == "critiques" else "plan"
            return Found(
                message=f"{malformed:.0%} of the {kind} were malformed in the last {FEWEST} logged values{what}",
                advice=f"lower rollout.{stage}.temperature or training.learning_rate"
                + (f", or raise rollout.{stage}.max_new_tokens" if long else ""),
            )
    return None


def _entropy_collapse(history: History, ratio_tolerance: float) -> Found | None:
    for kind, entropy in _by_kind(history, "entropy"):
        if len(entropy) < 2 * FEWEST:
            continue
        first, recent = float(np.median(entropy.values[:FEWEST])), float(np.median(entropy.values[-FEWEST:]))
        if recent < NO_ENTROPY and recent < OF_THE_START * first:
            stage = "critique" if kind == "critiques" else "plan"
            return Found(
                message=f"the {kind} have {recent:.2g} nats of entropy a token left of {first:.2g}",
                advice="peers say the same and teach nothing: lower training.learning_rate, raise algorithm.beta or "
                f"rollout.{stage}.temperature, or take a checkpoint from before",
            )
    return None


def _stop_rate(history: History, ratio_tolerance: float) -> Found | None:
    rate = history.series("refine/frac_stopped")
    recent = rate.last(NUM_STOP_RATES)
    if len(recent) < NUM_STOP_RATES:
        return None
    earlier, mean = rate.values[:-NUM_STOP_RATES], float(recent.values.mean())
    steps = recent.steps
    if mean >= ALWAYS:
        # right to stop where every image is right, unless it was otherwise before
        wrong = len(history.series("refine/frac_wrong_edited").at(steps)) > 0
        if wrong or (earlier.size and earlier.mean() < ALWAYS):
            return Found(
                message=f"{mean:.0%} of the critiques ended the loop in the last {NUM_STOP_RATES} logged values",
                advice="nothing is refined any more: lower algorithm.tree.perfect_ratio or training.learning_rate, or "
                "take a checkpoint from before",
            )
    if mean <= NEVER:
        right = len(history.series("refine/frac_right_kept").at(steps)) > 0
        if right or (earlier.size and earlier.mean() > NEVER):
            return Found(
                message=f"{mean:.0%} of the critiques ended the loop in the last {NUM_STOP_RATES} logged values",
                advice="right images are edited too: raise algorithm.tree.perfect_ratio, or take a checkpoint from "
                "before",
            )
    return None


MALFORMED = Guard(
    name="malformed",
    words="malformed texts",
    threshold=f"more than {MOST_MALFORMED:.0%} of the plans, or of the critiques, in {FEWEST} logged values",
    look=_malformed,
    explains=("stop_rate",),
)
ENTROPY_COLLAPSE = Guard(
    name="entropy_collapse",
    words="entropy of the texts collapsed",
    threshold=f"plans, or critiques, below {NO_ENTROPY:g} nats a token and {OF_THE_START:.0%} of the beginning "
    f"(medians of {FEWEST} logged values)",
    look=_entropy_collapse,
)
STOP_RATE = Guard(
    name="stop_rate",
    words="critiques that end the loop always, or never",
    threshold=f"a share of {ALWAYS:.0%} and more over {NUM_STOP_RATES} logged values although images were wrong, or of "
    f"{NEVER:.0%} and less although images were right; or either after it was otherwise",
    look=_stop_rate,
)
