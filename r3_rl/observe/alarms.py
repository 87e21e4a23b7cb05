"""What the curves say is wrong: each alarm names the figure, the reason and what to try.

The same checks serve the live line (`LiveAlarms`, on the rows so far) and the report (`find_alarms`, on all of them).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WINDOW = 20
"""Logged values that are averaged before two stretches of a run are compared."""
NOTABLE_CHANGE = 0.02
"""Smallest change of a score that is worth a word, however sure it is."""
SURE = 3.0
"""Standard errors between two stretches; above 2, since the best of many earlier stretches is picked."""
FEWEST = 5
"""Logged values below which a mean or a median over steps is not judged."""
MANY_EQUAL_GROUPS = 0.5
RATIO_TOLERANCE = 1e-4
"""Largest |ratio - 1| of a first pass in float32."""
NEAR_EPSILON = 10.0
"""Gradient elements over AdamW's epsilon below which the epsilon slows a branch by a tenth and more."""
COARSE_RATIO_TOLERANCE = 0.05
"""The same in bfloat16, whose rounding alone moves the ratio by about 1e-2."""

CHECKS: Mapping[str, str] = {
    "drafts_get_worse": "gain rising because drafts get worse",
    "draft_collapse": "draft score falling",
    "equal_groups": "groups whose rewards are all equal",
    "missing_scores": "missing scores",
    "not_finite": "values that are not finite",
    "off_policy_ratio": "importance ratio away from 1 on the first pass",
    "near_epsilon": "gradients near the optimiser's epsilon",
}


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """One thing that needs a look."""

    name: str
    """Key of `CHECKS`."""
    message: str
    """What was seen, with its figures."""
    advice: str
    """What to try."""


def find_alarms(
    rows: Sequence[Mapping[str, Any]], window: int = WINDOW, ratio_tolerance: float = RATIO_TOLERANCE
) -> list[Alarm]:
    """All alarms that the logged rows of a run give rise to, the gravest first.

    Args:
        rows: lines of `metrics.jsonl` in order, each with `step` and whatever was measured in that step.
        window: number of logged values that are averaged before two stretches of the run are compared.
        ratio_tolerance: largest |ratio - 1| of a first pass that is rounding; see `ratio_tolerance_of`.

    >>> find_alarms([{"step": 1, "reward": 0.5}])
    []
    >>> [alarm.name for alarm in find_alarms([{"step": 1, "scores/missing_fraction": 0.25}])]
    ['missing_scores']
    """
    found = [
        _not_finite(rows),
        _drafts(rows, window),
        _off_policy(rows, ratio_tolerance),
        _missing(rows),
        _equal_groups(rows, window),
        _near_epsilon(rows, window),
    ]
    return [alarm for alarm in found if alarm is not None]


class LiveAlarms:
    """The alarms of a run that goes on: each is returned once, when it first fires.

    Args:
        rows: lines that an interrupted run has logged; their alarms were said then.
        ratio_tolerance: as in `find_alarms`.

    >>> live = LiveAlarms()
    >>> live.add({"step": 1, "scores/missing_fraction": 0.25})
    ['alarm at step 1: missing scores; try the scorer alone with `r3 rewards test`; a remote one may be slow or down.']
    >>> live.add({"step": 2, "scores/missing_fraction": 0.25})
    []
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = (), *, ratio_tolerance: float = RATIO_TOLERANCE) -> None:
        self._rows, self._tolerance = list(rows), ratio_tolerance
        self._said = {alarm.name for alarm in find_alarms(self._rows, ratio_tolerance=ratio_tolerance)}

    def add(self, row: Mapping[str, Any]) -> list[str]:
        """Take the line of a step; return one sentence for each new alarm: what it is and what to try."""
        self._rows.append(row)
        found = find_alarms(self._rows, ratio_tolerance=self._tolerance)
        new = [alarm for alarm in found if alarm.name not in self._said]
        self._said.update(alarm.name for alarm in new)
        return [f"alarm at step {row['step']}: {CHECKS[a.name]}; {a.advice[0].lower()}{a.advice[1:]}" for a in new]


def ratio_tolerance_of(dtype: str) -> float:
    """Largest |ratio - 1| that rounding explains for a policy that computes in `dtype`.

    >>> ratio_tolerance_of("float32"), ratio_tolerance_of("bfloat16")
    (0.0001, 0.05)
    """
    return RATIO_TOLERANCE if dtype in ("float32", "float64") else COARSE_RATIO_TOLERANCE


@dataclass(frozen=True, kw_only=True)
class Series:
    """One metric over a run: the steps in which it was measured, and its values."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return self.values.size


def series(rows: Sequence[Mapping[str, Any]], name: str) -> Series:
    """The finite values of one metric with their steps.

    >>> series([{"step": 1, "kl": 0.5}, {"step": 2, "kl": None}, {"step": 3}], "kl").values
    array([0.5])
    """
    pairs = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    return Series(
        steps=np.array([step for step, _ in pairs], dtype=np.int64),
        values=np.array([value for _, value in pairs], dtype=np.float64),
    )


def _drafts(rows: Sequence[Mapping[str, Any]], window: int) -> Alarm | None:
    drafts, gains = series(rows, "refine/draft_score"), series(rows, "refine/gain_mean")
    if len(drafts) < 2 * window:
        return None
    means = np.convolve(drafts.values, np.ones(window) / window, mode="valid")
    best = int(np.argmax(means[: len(drafts) - 2 * window + 1]))
    earlier, recent = drafts.values[best : best + window], drafts.values[-window:]
    if not _surely_below(recent, earlier):
        return None
    fall = f"the draft score fell from {earlier.mean():.3f} to {recent.mean():.3f}"
    span = (drafts.steps[best], drafts.steps[best + window - 1])
    gains_then = gains.values[(gains.steps >= span[0]) & (gains.steps <= span[1])]
    gains_now = gains.values[gains.steps >= drafts.steps[-window]]
    if min(len(gains_then), len(gains_now)) >= 2 and _surely_below(gains_then, gains_now):
        return Alarm(
            name="drafts_get_worse",
            message=f"The gain rose from {gains_then.mean():.3f} to {gains_now.mean():.3f} while {fall} "
            f"(steps {span[0]} to {span[1]} against the last {window}).",
            advice="The gain is earned by worse drafts, not by better refinements: lower the learning rate, raise beta "
            "and image_beta, or take the checkpoint from before the fall.",
        )
    return Alarm(
        name="draft_collapse",
        message=f"{fall[0].upper()}{fall[1:]} (steps {span[0]} to {span[1]} against the last {window}).",
        advice="Lower the learning rate, raise beta, or take the checkpoint from before the fall.",
    )


def _surely_below(low: np.ndarray, high: np.ndarray) -> bool:
    spread = math.sqrt(low.var(ddof=1) / low.size + high.var(ddof=1) / high.size)
    change = float(high.mean() - low.mean())
    return change > NOTABLE_CHANGE and change > SURE * spread


def _not_finite(rows: Sequence[Mapping[str, Any]]) -> Alarm | None:
    hit = [row for row in rows if row.get("not_finite")]
    if not hit:
        return None
    names = sorted({name for row in hit for name in row["not_finite"]})
    return Alarm(
        name="not_finite",
        message=f"{_steps(len(hit))} logged a value that is not finite: {', '.join(names)}; "
        f"the first is step {hit[0]['step']}.",
        advice="Look at that step's trajectories and scores; lower the learning rate if the losses blew up.",
    )


def _off_policy(rows: Sequence[Mapping[str, Any]], tolerance: float) -> Alarm | None:
    worst = [
        (float(np.max(found.values)), int(found.steps[np.argmax(found.values)]), kind)
        for kind in ("text", "image")
        if len(found := series(rows, f"ratio/{kind}_deviation"))
    ]
    if not worst or max(worst)[0] <= tolerance:
        return None
    deviation, step, kind = max(worst)
    return Alarm(
        name="off_policy_ratio",
        message=f"The {kind} importance ratio was {deviation:.2g} away from 1 on a first pass (step {step}); "
        f"rounding explains {tolerance:g} at most.",
        advice="Sampling and replay differ: other guidance, temperature or positions. Check the backbone's `replay` "
        "against its `write` and `draw`.",
    )


def _missing(rows: Sequence[Mapping[str, Any]]) -> Alarm | None:
    missing = series(rows, "scores/missing_fraction")
    hit = int((missing.values > 0).sum())
    if hit == 0:
        return None
    return Alarm(
        name="missing_scores",
        message=f"Scores were missing in {hit} of {_steps(len(missing))}, {missing.values.mean():.2%} of all scores "
        f"(worst step {missing.steps[np.argmax(missing.values)]}: {missing.values.max():.1%}). "
        "They left their group's statistics and were never counted as 0.",
        advice="Try the scorer alone with `r3 rewards test`; a remote one may be slow or down.",
    )


def _equal_groups(rows: Sequence[Mapping[str, Any]], window: int) -> Alarm | None:
    equal = series(rows, "frac_reward_zero_std")
    recent = equal.values[-window:]
    if recent.size < FEWEST or recent.mean() <= MANY_EQUAL_GROUPS:
        return None
    return Alarm(
        name="equal_groups",
        message=f"In the last {_steps(recent.size)} {recent.mean():.0%} of the groups had rewards that are all equal. "
        "Such a group teaches nothing.",
        advice="Choose harder prompts (or easier ones, if all fail), larger groups, more sampling noise, or nodes "
        "whose group has spread.",
    )


def _near_epsilon(rows: Sequence[Mapping[str, Any]], window: int) -> Alarm | None:
    recent = series(rows, "grad/over_epsilon").values[-window:]
    if recent.size < FEWEST or (middle := float(np.median(recent))) >= NEAR_EPSILON:
        return None
    return Alarm(
        name="near_epsilon",
        message=f"In the last {_steps(recent.size)} gradient elements of one branch were {middle:.2g} times AdamW's "
        "epsilon (median): its learning rate does not mean what it says.",
        advice="Lower `training.adam_epsilon`, for example to 1e-12; image losses are means over all latent dimensions "
        "and have small gradients.",
    )


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"
