"""How one denoising step becomes a Gaussian: the equations that published samplers use, one function each.

Flow matching with x_t = (1 - t) x_0 + t x_1, x_1 noise, and the network's velocity v = x_1 - x_0. A drawing walks t
down from 1 to 0; the plain walk is an ODE. A convention turns one step into a draw from a Gaussian with (nearly) the
same marginals, which gives reinforcement learning a probability to work with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from r3_rl.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class StepDistribution:
    """The Gaussian that the next state is drawn from."""

    mean: torch.Tensor
    """float32 [..., N, C]."""
    std: torch.Tensor
    """float32 [...], one for all dimensions of an image; above 0."""
    eta: torch.Tensor
    """float32 [...], the noise level that the convention settled on at this time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StepInputs:
    """What a convention sees: float32 tensors that broadcast against x [..., N, C]."""

    x: torch.Tensor
    """[..., N, C], state before the step."""
    velocity: torch.Tensor
    """[..., N, C], guided velocity at x."""
    time: torch.Tensor
    """[..., 1, 1], t of x, in (0, 1]."""
    next_time: torch.Tensor
    """[..., 1, 1], t' after the step, in [0, t)."""
    second_time: torch.Tensor | None
    """[..., 1, 1], the schedule's second point; read by `flow_grpo` where t = 1."""
    eta: float
    """Noise level of the recipe."""


Convention = Callable[[StepInputs], StepDistribution]


def r3_constant(step: StepInputs) -> StepDistribution:
    """Keep one noise level at all times.

    eta(t) = c;   x0 = x - t v;   score = -(x - (1 - t) x0) / t^2
    mean = x - (v - eta^2 score / 2) dt;   std = eta sqrt(dt);   dt = t - t'

    Source: R3, mode "constant"; DanceGRPO uses the same step.

    >>> one = torch.ones(1, 1, 1)
    >>> inputs = StepInputs(x=one, velocity=one, time=one, next_time=one / 2, second_time=None, eta=1.0)
    >>> r3_constant(inputs).mean.item()
    0.25
    """
    return _score_step(step, torch.full_like(step.time, step.eta))


def r3_monotonic(step: StepInputs) -> StepDistribution:
    """Let the noise level fall with t, held finite near t = 1.

    eta(t) = c sqrt(t / (1 - min(t, 0.95)));   mean and std as in `r3_constant`

    Source: R3, mode "monotonic" (its default).

    >>> one = torch.ones(1, 1, 1)
    >>> inputs = StepInputs(x=one, velocity=one, time=one, next_time=one / 2, second_time=None, eta=1.0)
    >>> round(r3_monotonic(inputs).eta.item() ** 2, 3)
    20.0
    """
    return _score_step(step, step.eta * torch.sqrt(step.time / (1 - step.time.clamp(max=0.95))))


def flow_grpo(step: StepInputs) -> StepDistribution:
    """Let the noise level fall with t; the first step borrows the schedule's second time.

    eta(t) = c sqrt(t / (1 - s)),   s = t, or the schedule's second point where t = 1
    mean = x (1 - eta^2 dt / (2 t)) - v (1 + eta^2 (1 - t) / (2 t)) dt;   std = eta sqrt(dt)

    The mean is algebraically that of `r3_monotonic`; only eta on the first steps differs.

    Source: Flow-GRPO, equation 9 and its released sampler (whose dt is negative); MixGRPO, "flow".

    >>> one = torch.ones(1, 1, 1)
    >>> inputs = StepInputs(x=one, velocity=one, time=one, next_time=one / 2, second_time=one / 2, eta=1.0)
    >>> round(flow_grpo(inputs).eta.item() ** 2, 3)
    2.0
    """
    at_start = step.time >= 1
    if step.second_time is None and bool(at_start.any()):
        raise InputError("flow_grpo cannot step from t = 1 on its own", hint="pass second_time=schedule[1]")
    below_one = step.time if step.second_time is None else torch.where(at_start, step.second_time, step.time)
    eta = step.eta * torch.sqrt(step.time / (1 - below_one))
    dt = step.time - step.next_time
    half_rate = eta.square() / (2 * step.time)
    mean = step.x * (1 - half_rate * dt) - step.velocity * (1 + half_rate * (1 - step.time)) * dt
    return StepDistribution(mean=mean, std=eta * dt.sqrt(), eta=eta)


def cps(step: StepInputs) -> StepDistribution:
    """Replace part of the predicted noise by fresh noise and keep both coefficients of the path.

    x0 = x - t v;   x1 = x + (1 - t) v;   sigma = t' sin(eta pi / 2)
    mean = (1 - t') x0 + sqrt(t'^2 - sigma^2) x1;   std = sigma

    The total weight of noise stays t', so the next state is as noisy as the schedule says. At t' = 0 nothing is
    left to replace and the step is an ODE step. The paper drops sigma from its log-prob; `log_prob` here divides by
    it, as for every other convention, so that the clip range means the same thing for all of them.

    Source: Flow-CPS (coefficients-preserving sampling).

    >>> one = torch.ones(1, 1, 1)
    >>> inputs = StepInputs(x=one, velocity=one, time=one, next_time=one / 2, second_time=None, eta=1.0)
    >>> cps(inputs).mean.item(), cps(inputs).std.item()
    (0.0, 0.5)
    """
    if not 0 < step.eta <= 1:
        raise InputError(f"cps eta {step.eta} is outside (0, 1]", hint="1 replaces all of the predicted noise")
    angle = step.eta * math.pi / 2
    # cos(pi/2) is 6e-17 in floating point; at eta = 1 none of the predicted noise may survive
    kept = 0.0 if step.eta == 1 else math.cos(angle)
    data = step.x - step.time * step.velocity
    noise = step.x + (1 - step.time) * step.velocity
    mean = (1 - step.next_time) * data + step.next_time * kept * noise
    return StepDistribution(mean=mean, std=step.next_time * math.sin(angle), eta=torch.full_like(step.time, step.eta))


CONVENTIONS: dict[str, Convention] = {
    "r3_constant": r3_constant,
    "r3_monotonic": r3_monotonic,
    "flow_grpo": flow_grpo,
    "dance": r3_constant,  # DanceGRPO's step is R3's constant one; both names are in use
    "cps": cps,
}
"""SDE conventions by their name in a recipe."""

MATCHING = "matching"
"""The name that a recipe has for no SDE at all: all steps follow the ODE and finished images are scored by
`flow.matching`."""


def can_be_stochastic(convention: str, next_time: float) -> bool:
    """Tell whether a step that ends at `next_time` can carry noise, and so a log-prob.

    Args:
        convention: a name in `CONVENTIONS`.
        next_time: t' in [0, 1).

    Source: the equations above; only `cps` has std 0 somewhere (at t' = 0, the last step).

    >>> can_be_stochastic("cps", 0.0), can_be_stochastic("r3_monotonic", 0.0)
    (False, True)
    """
    return convention != "cps" or next_time > 0


def _score_step(step: StepInputs, eta: torch.Tensor) -> StepDistribution:
    dt = step.time - step.next_time
    data = step.x - step.time * step.velocity
    score = -(step.x - (1 - step.time) * data) / step.time.square()
    mean = step.x - (step.velocity - 0.5 * eta.square() * score) * dt
    return StepDistribution(mean=mean, std=eta * dt.sqrt(), eta=eta)
