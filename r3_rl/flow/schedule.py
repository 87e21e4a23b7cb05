"""The times at which a drawing visits the network, from noise (t = 1) to data (t = 0), and which of its steps are
stochastic; the others follow the ODE and are not trained."""

from __future__ import annotations

import numpy as np
import torch

from r3_rl.errors import InputError

WINDOWS = ("random", "first", "sliding", "all")
"""Windows by their name in a recipe."""


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


def choose_steps(
    window: str,
    num_steps: int,
    num_sde_steps: int,
    *,
    window_size: int | None = None,
    progress: float = 0.0,
    rng: np.random.Generator,
) -> tuple[int, ...]:
    """Draw the stochastic steps of one drawing.

    `num_sde_steps` different steps are drawn, all equally likely, from a span of the T steps:

        random   0 .. T - 1
        first    0 .. w - 1
        sliding  o .. o + w - 1,   o = round(progress (T - w)): from noise to data as training goes on
        all      every step, without a draw (`num_sde_steps` is then not read)

    Args:
        window: a name in `WINDOWS`.
        num_steps: T >= 1, the steps that may be stochastic. Where the last step cannot (`can_be_stochastic`), give
            one less than the drawing has.
        num_sde_steps: how many steps are stochastic, 1 .. w.
        window_size: w for `first` and `sliding`, `num_sde_steps` .. T; left out, it equals `num_sde_steps`.
        progress: share of the training that is done, 0 .. 1; read by `sliding`.
        rng: where the draw comes from; the same for all members of a group that share their steps.

    Returns:
        Indices of steps, rising.

    Raises:
        InputError: an unknown window, counts that do not fit, or a `window_size` where the window has none.

    Source: MixGRPO, section 3.2 (sliding); R3 (one of all steps for drafts, one of the first two for refinements).

    >>> choose_steps("first", 20, 2, rng=np.random.default_rng(0))
    (0, 1)
    >>> choose_steps("sliding", 20, 2, progress=1.0, rng=np.random.default_rng(0))
    (18, 19)
    """
    if window not in WINDOWS:
        raise InputError(f"unknown window {window!r}", hint=f"choose one of {', '.join(WINDOWS)}")
    if num_steps < 1:
        raise InputError("the drawing has no step that can be stochastic", hint="use more denoising steps")
    if not 0 <= progress <= 1:
        raise InputError(f"progress {progress} is outside 0 .. 1")
    if window_size is not None and window in ("random", "all"):
        raise InputError(
            f"window {window!r} spans all steps and takes no window_size", hint="leave it out, or use first or sliding"
        )
    if window == "all":
        return tuple(range(num_steps))
    size = num_sde_steps if window_size is None else window_size
    if window == "random":
        size = num_steps
    if not 1 <= num_sde_steps <= size <= num_steps:
        raise InputError(
            f"{num_sde_steps} stochastic steps from a window of {size} do not fit in {num_steps} steps",
            hint="1 <= num_sde_steps <= window_size <= steps must hold",
        )
    start = round(progress * (num_steps - size)) if window == "sliding" else 0
    drawn = rng.choice(size, size=num_sde_steps, replace=False)
    return tuple(sorted(start + int(index) for index in drawn))
