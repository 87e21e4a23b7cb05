"""The times at which a drawing visits the network, from noise (t = 1) to data (t = 0)."""

from __future__ import annotations

import torch

from r3_rl.errors import InputError


def shifted_schedule(num_points: int, shift: float) -> torch.Tensor:
    """Give the times of a drawing, moved towards the noisy end by `shift`.

    u_i = 1 - i / (n - 1),   t_i = s u_i / (1 + (s - 1) u_i),   i = 0 .. n - 1

    n points bound n - 1 network steps: step i goes from t_i to t_{i+1}.

    Args:
        num_points: n, at least 2.
        shift: s > 0; 1 leaves the points evenly spaced, 3 is usual for large images.

    Returns:
        float32 [n], strictly falling from exactly 1 to exactly 0.

    Raises:
        InputError: fewer than 2 points, or a shift that is not positive.

    Source: BAGEL (timestep_shift); SD3, section 5.3.2.

    >>> shifted_schedule(3, 3.0)
    tensor([1.0000, 0.7500, 0.0000])
    """
    if num_points < 2:
        raise InputError(f"a schedule of {num_points} points has no step", hint="give at least 2 points")
    if not shift > 0:
        raise InputError(f"schedule shift {shift} is not positive", hint="1 means no shift")
    even = torch.linspace(1.0, 0.0, num_points, dtype=torch.float32)
    return shift * even / (1 + (shift - 1) * even)
