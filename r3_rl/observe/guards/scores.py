"""Guards on scores and rewards: drafts, held-out scorers, groups, a policy that earns nothing any more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from r3_rl.observe.guards.base import FEWEST, NOTABLE_CHANGE, SURE, WINDOW, Found, Guard, steps_in_words, surely_below
from r3_rl.observe.history import History, Series

MANY_EQUAL_GROUPS = 0.5
CHANCE = 1e-4
"""Most probable that a stretch of steps without reward may be for a policy that lives."""
_MOVED = (
    f"a mean of {WINDOW} logged values against the best of {WINDOW} before, by {SURE:g} standard errors and "
    f"{NOTABLE_CHANGE}"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fall:
    """A stretch of a score against the last one, which is surely lower."""

    earlier: Series
    recent: Series

    @property
    def words(self) -> str:
        return f"fell from {self.earlier.values.mean():.3f} to {self.recent.values.mean():.3f}"

    @property
    def when(self) -> str:
        return f"steps {self.earlier.steps[0]} to {self.earlier.steps[-1]} against the last {len(self.recent)}"

    def rise(self, other: Series) -> tuple[float, float] | None:
        """Means of another metric in both stretches, if it surely rose meanwhile."""
        then = other.within(int(self.earlier.steps[0]), int(self.earlier.steps[-1])).values
        now = other.within(int(self.recent.steps[0]), int(self.recent.steps[-1])).values
        if min(then.size, now.size) < 2 or not surely_below(then, now):
            return None
        return float(then.mean()), float(now.mean())


def _fall(score: Series) -> _Fall | None:
    """The best stretch of `WINDOW` values against the last one."""
    if len(score) < 2 * WINDOW:
        return None
    means = np.convolve(score.values, np.ones(WINDOW) / WINDOW, mode="valid")
    best = int(np.argmax(means[: len(score) - 2 * WINDOW + 1]))
    earlier = Series(steps=score.steps[best : best + WINDOW], values=score.values[best : best + WINDOW])
    recent = score.last(WINDOW)
    return _Fall(earlier=earlier, recent=recent) if surely_below(recent.values, earlier.values) else None


def _drafts_get_worse(history: History, ratio_tolerance: float) -> Found | None:
    fall = _fall(history.series("refine/draft_score"))
    rise = fall.rise(history.series("refine/gain_mean")) if fall else None
    if fall is None or rise is None:
        return None
    return Found(
        message=f"the gain rose from {rise[0]:.3f} to {rise[1]:.3f} while the draft score {fall.words} ({fall.when})",
        advice="it is earned by worse drafts, not by better refinements: lower training.learning_rate, raise "
        "algorithm.beta and image_beta, or take a checkpoint from before the fall",
    )


def _draft_collapse(history: History, ratio_tolerance: float) -> Found | None:
    fall = _fall(history.series("refine/draft_score"))
    if fall is None:
        return None
    return Found(
        message=f"the draft score {fall.words} ({fall.when})",
        advice="lower training.learning_rate, raise algorithm.beta, or take a checkpoint from before the fall",
    )


def _held_out_falls(history: History, ratio_tolerance: float) -> Found | None:
    """Training scores and held-out scores of a step are means over the same images."""
    for name in history.names("eval_rewards/", "/mean"):
        fall = _fall(history.series(name))
        for trained in history.names("rewards/", "/mean") if fall else ():
            if fall and (rise := fall.rise(history.series(trained))):
                held, ours = name.split("/")[1], trained.split("/")[1]
                return Found(
                    message=f"the held-out score {held} {fall.words} while {ours}, which is trained on, rose from "
                    f"{rise[0]:.3f} to {rise[1]:.3f} ({fall.when})",
                    advice=f"the policy games {ours}: take a checkpoint from before the fall, and put a stricter "
                    "scorer into rewards",
                )
    return None


def _num_dead(history: History) -> int:
    """Logged values without any reward since the last one with some; 0 if there never was some. A few steps later it
    shows whether the policy is dead, and until then the advice on equal groups may be wrong."""
    reward = history.series("reward").values
    alive = np.flatnonzero(reward)
    return reward.size - int(alive[-1]) - 1 if alive.size else 0


def _dead_policy(history: History, ratio_tolerance: float) -> Found | None:
    num_dead = _num_dead(history)
    if num_dead < FEWEST:
        return None
    reward = history.series("reward")
    begin, before = int(reward.steps[-num_dead]), reward.values[:-num_dead]
    if history.series("reward_std").within(begin, history.step).values.any():
        return None
    formed = history.series("refine/frac_well_formed").within(begin, history.step)
    # steps without reward also come by chance where rewards are rare, but not to texts none of which is well formed
    chance = ((before == 0).sum() + 1) / (before.size + 2)
    if chance**num_dead > CHANCE and (not len(formed) or formed.values.any()):
        return None
    return Found(
        message=f"every reward has been 0 for {steps_in_words(num_dead)} and was {before.mean():.3f} on average before",
        advice=f"the policy is dead: resume from a checkpoint before step {begin}, or start again, with a lower "
        "training.learning_rate",
    )


def _missing_scores(history: History, ratio_tolerance: float) -> Found | None:
    missing = history.series("scores/missing_fraction")
    hit = int((missing.values > 0).sum())
    if hit == 0:
        return None
    return Found(
        message=f"scores were missing in {hit} of {steps_in_words(len(missing))}, {missing.values.mean():.2%} of all "
        f"(worst step {missing.steps[np.argmax(missing.values)]}: {missing.values.max():.1%}), and were never counted "
        "as 0",
        advice="try the scorer alone with `r3 rewards test`, a remote one may be slow or down",
    )


def _equal_groups(history: History, ratio_tolerance: float) -> Found | None:
    recent = history.series("frac_reward_zero_std", WINDOW).values
    if recent.size < FEWEST or recent.mean() <= MANY_EQUAL_GROUPS or 0 < _num_dead(history) < FEWEST:
        return None
    return Found(
        message=f"in the last {steps_in_words(recent.size)} {recent.mean():.0%} of the groups had rewards that are all "
        "equal, which teach nothing",
        advice="choose harder prompts (or easier ones, if all fail), larger groups, more sampling noise, or nodes "
        "whose group has spread",
    )


DEAD_POLICY = Guard(
    name="dead_policy",
    words="every reward is 0",
    threshold=f"all rewards are exactly 0 in {FEWEST} and more logged values, after others were not: with no "
    f"well-formed text, or for so long that by the share of such steps before it is less likely than {CHANCE:g}",
    look=_dead_policy,
    explains=(
        "equal_groups",
        "malformed",
        "stop_rate",
        "drafts_get_worse",
        "draft_collapse",
        "entropy_collapse",
        "held_out_falls",
    ),
)
DRAFTS_GET_WORSE = Guard(
    name="drafts_get_worse",
    words="gain rising because drafts get worse",
    threshold=f"{_MOVED}, the gain up by as much",
    look=_drafts_get_worse,
    explains=("draft_collapse",),
)
DRAFT_COLLAPSE = Guard(name="draft_collapse", words="draft score falling", threshold=_MOVED, look=_draft_collapse)
HELD_OUT_FALLS = Guard(
    name="held_out_falls",
    words="held-out score falling while a training score rises",
    threshold=f"{_MOVED}, a training score of the same images up by as much",
    look=_held_out_falls,
)
MISSING_SCORES = Guard(
    name="missing_scores", words="missing scores", threshold="one score is missing", look=_missing_scores
)
EQUAL_GROUPS = Guard(
    name="equal_groups",
    words="groups whose rewards are all equal",
    threshold=f"a mean above {MANY_EQUAL_GROUPS:.0%} in the last {WINDOW} logged values, at least {FEWEST}",
    look=_equal_groups,
)
