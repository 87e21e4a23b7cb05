"""Progressive training: drawing and understanding first apart, then more and more often in one step."""

from __future__ import annotations


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
