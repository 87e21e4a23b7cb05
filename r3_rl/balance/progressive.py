"""Progressive training: drawing and understanding first apart, then more and more often in one step.

The ramp begins after a share of the run, or as soon as nothing gets better any more (a plateau). Times are shares of
the run that are over, [0, 1].
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from r3_rl.recipe.base import default
from r3_rl.recipe.learning import ProgressiveSection


def joint_share(done: float, apart: float, ramp: float) -> float:
    """Share of joint steps: 0 while `apart` lasts, then rising evenly over `ramp` to 1.

    Args:
        done: share of the run that is over, [0, 1].
        apart: first share of the run, [0, 1].
        ramp: share of the run after it, [0, 1].

    >>> [joint_share(done, 0.25, 0.5) for done in (0.0, 0.25, 0.5, 0.75, 1.0)]
    [0.0, 0.0, 0.5, 1.0, 1.0]
    >>> joint_share(0.5, 0.5, 0.0), joint_share(0.51, 0.5, 0.0)
    (0.0, 1.0)
    """
    return min(max((done - apart) / max(ramp, 1e-9), 0.0), 1.0)


@dataclass(kw_only=True)
class Progressive:
    """Where a run stands between apart and joint.

    >>> run = Progressive(apart=0.5, ramp=0.5, plateau_steps=2, plateau_gain=0.1)
    >>> for done, reward in ((0.1, 0.2), (0.12, 0.4), (0.14, 0.4), (0.16, 0.4), (0.18, 0.41)):
    ...     run.observe(done, {"reason": reward})
    >>> run.began, run.share(0.43)
    (0.18, 0.5)
    """

    apart: float
    """The ramp begins at this time at the latest; without a plateau then exactly."""
    ramp: float
    """How long it takes."""
    plateau_steps: int | None = default(ProgressiveSection, "plateau_steps")
    """n: a value is on a plateau if its mean over the last n observations is hardly above that over the n before."""
    plateau_gain: float = default(ProgressiveSection, "plateau_gain")
    """Gain of the mean that still counts, as a share of its size."""
    began: float | None = None
    """When a plateau set the ramp off; None where none has."""
    _seen: dict[str, deque[float]] = field(default_factory=dict)

    @property
    def start(self) -> float:
        """When the ramp began, or begins if no plateau comes before."""
        return self.apart if self.began is None else self.began

    def share(self, done: float) -> float:
        """The share of joint steps now."""
        return joint_share(done, self.start, self.ramp)

    def observe(self, done: float, values: Mapping[str, float]) -> None:
        """Take what a step has measured; more is better.

        Args:
            done: time after the step.
            values: by what was trained. Unlike kinds of steps take turns: each is compared with its own, and all that
                came so far have to be on their plateau.
        """
        if self.plateau_steps is None or self.began is not None or done >= self.apart:
            return
        for name, value in values.items():
            self._seen.setdefault(name, deque(maxlen=2 * self.plateau_steps)).append(value)
        if self._seen and all(map(self._flat, self._seen.values())):
            self.began = done

    def _flat(self, values: deque[float]) -> bool:
        half = self.plateau_steps or 1
        if len(values) < 2 * half:
            return False
        before, after = (sum(list(values)[part]) / half for part in (slice(half), slice(half, None)))
        return after - before <= self.plateau_gain * abs(before)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: plain data."""
        return {"began": self.began, "seen": {name: list(values) for name, values in self._seen.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned; an empty mapping is a fresh start."""
        self.began = state.get("began")
        most = 2 * (self.plateau_steps or 1)
        self._seen = {name: deque(values, maxlen=most) for name, values in state.get("seen", {}).items()}


Course = Callable[[int], float]
"""Step -> factor of the learning rate."""


def begun_anew(course: Callable[[int], Course], start: Callable[[], float], latest: float, total: int) -> Course:
    """A learning rate's course that ends with the apart phase and begins anew, warm-up included, with the ramp.

    Args:
        course: that of a phase of so many steps.
        start: time at which the ramp began, or will if nothing changes.
        latest: of these times, which the first phase's course is made for.
        total: steps of the run.

    >>> falling = lambda steps: lambda step: 1 - step / steps
    >>> rate = begun_anew(falling, lambda: 0.5, 0.5, 8)
    >>> [rate(step) for step in range(8)]
    [1.0, 0.75, 0.5, 0.25, 1.0, 0.75, 0.5, 0.25]
    """
    first = course(max(ceil(latest * total), 1))

    def rate(step: int) -> float:
        begin = ceil(start() * total)
        return first(step) if step < begin else course(max(total - begin, 1))(step - begin)

    return rate
