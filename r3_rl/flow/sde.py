"""One stochastic denoising step: its Gaussian, a sample of it, and the log-prob of a sample.

Flow matching with x_t = (1 - t) x_0 + t x_1, x_1 noise, and the network's velocity v = x_1 - x_0. A drawing walks t
down from 1 to 0; the plain walk is an ODE. A convention turns one step into a draw from a Gaussian with (nearly) the
same marginals, which gives reinforcement learning a probability to work with.

Shapes: x, v, noise [..., N, C] with N latent tokens and C channels; times [...], one per image, so that a batch may
mix steps. Everything is computed in float32 whatever comes in: with bfloat16 the log-prob would be rounding noise.
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


def stochastic_step(
    x: torch.Tensor,
    velocity: torch.Tensor,
    time: torch.Tensor,
    next_time: torch.Tensor,
    convention: str,
    eta: float,
    *,
    second_time: torch.Tensor | float | None = None,
) -> StepDistribution:
    """Give the Gaussian of one stochastic step from `time` to `next_time`.

    x' ~ N(mean(x, v, t, t'), std(t, t')^2); the equations stand with each convention in this file.

    Args:
        x: [..., N, C], state before the step, any float dtype.
        velocity: [..., N, C], the velocity the sampler uses (guided, if guidance is on).
        time: [...], t in (0, 1]; broadcasts against the leading dimensions of x.
        next_time: [...], t' in [0, t).
        convention: a name in `CONVENTIONS`.
        eta: noise level; above 0, for `cps` at most 1.
        second_time: the schedule's second point, needed by `flow_grpo` for a step that starts at t = 1.

    Returns:
        mean float32 [..., N, C], std and eta float32 [...]. Gradient flows through `velocity`.

    Raises:
        InputError: unknown convention, times that do not fall, or a step that leaves no noise.

    Source: Flow-GRPO, section 4.2; DanceGRPO, section 3; R3 (arXiv 2602.15772); Flow-CPS.

    >>> x, v = torch.ones(2, 3, 1), torch.full((2, 3, 1), 0.5)
    >>> step = stochastic_step(x, v, torch.tensor([1.0, 0.5]), torch.tensor([0.75, 0.25]), "r3_constant", 0.2)
    >>> step.mean.shape, step.std
    (torch.Size([2, 3, 1]), tensor([0.1000, 0.1000]))
    """
    rule = CONVENTIONS.get(convention)
    if rule is None:
        raise InputError(f"unknown SDE convention {convention!r}", hint=f"choose one of {', '.join(CONVENTIONS)}")
    inputs = StepInputs(
        x=x.float(),
        velocity=velocity.float(),
        time=_over_tokens(time, x),
        next_time=_over_tokens(next_time, x),
        second_time=None if second_time is None else _over_tokens(torch.as_tensor(second_time), x),
        eta=eta,
    )
    if not bool(((inputs.time > inputs.next_time) & (inputs.next_time >= 0) & (inputs.time <= 1)).all()):
        raise InputError("a step must go from t to t' with 0 <= t' < t <= 1", hint="t = 1 is noise, t = 0 is data")
    step = rule(inputs)
    if not bool((step.std > 0).all()):
        raise InputError(
            f"convention {convention!r} with eta {eta} adds no noise on this step, so it has no log-prob",
            hint="take the step with euler_step and do not score it; can_be_stochastic tells which steps can",
        )
    leading = x.shape[:-2]
    return StepDistribution(
        mean=step.mean,
        std=step.std[..., 0, 0].expand(leading),
        eta=step.eta[..., 0, 0].expand(leading),
    )


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


def sample(step: StepDistribution, noise: torch.Tensor) -> torch.Tensor:
    """Draw the next state: x' = mean + std noise.

    Args:
        step: the step's Gaussian.
        noise: [..., N, C], standard normal.

    Returns:
        float32 [..., N, C]. Store it as it is: a rounded copy has another log-prob.

    >>> step = StepDistribution(mean=torch.zeros(1, 2, 1), std=torch.tensor([0.5]), eta=torch.tensor([1.0]))
    >>> sample(step, torch.ones(1, 2, 1)).flatten()
    tensor([0.5000, 0.5000])
    """
    return step.mean + step.std[..., None, None] * noise.float()


def log_prob(step: StepDistribution, next_state: torch.Tensor, *, constants: bool = False) -> torch.Tensor:
    """Score a next state under the step, one number per image.

    log p = -1/2 mean_{N,C} ((x' - mean) / std)^2        [ - log std - log(2 pi) / 2   with `constants` ]

    It is a mean, not a sum: the true log-ratio divided by N C, which is what the clip range is made for. The
    constants cancel in every ratio; `flow_grpo` keeps them.

    Args:
        step: the step's Gaussian.
        next_state: [..., N, C], x' as drawn.
        constants: add the normalising terms of the Gaussian.

    Returns:
        float32 [...].

    Source: Flow-GRPO and R3 (reduction by mean over an image's dimensions).

    >>> step = StepDistribution(mean=torch.zeros(1, 2, 1), std=torch.tensor([0.5]), eta=torch.tensor([1.0]))
    >>> log_prob(step, torch.ones(1, 2, 1))
    tensor([-2.])
    """
    scaled = (next_state.float() - step.mean) / step.std[..., None, None]
    value = -0.5 * scaled.square().mean(dim=(-2, -1))
    if constants:
        value = value - step.std.log() - 0.5 * math.log(2 * math.pi)
    return value


def euler_step(x: torch.Tensor, velocity: torch.Tensor, time: torch.Tensor, next_time: torch.Tensor) -> torch.Tensor:
    """Take one step of the flow ODE: x' = x - (t - t') v, in float32.

    Args:
        x: [..., N, C], state before the step.
        velocity: [..., N, C], the (guided) velocity.
        time: [...], t; next_time: [...], t' < t.

    Returns:
        float32 [..., N, C]. The step is certain: it has no log-prob and enters no loss.

    >>> euler_step(torch.ones(1, 1, 1), torch.ones(1, 1, 1), torch.tensor(1.0), torch.tensor(0.25)).item()
    0.25
    """
    return x.float() - (_over_tokens(time, x) - _over_tokens(next_time, x)) * velocity.float()


def kl_mean(mean: torch.Tensor, mean_reference: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Give the KL divergence of two steps of equal std, averaged over the latent's dimensions.

    KL = mean_{N,C} (mean - mean_ref)^2 / (2 std^2)

    Args:
        mean, mean_reference: [..., N, C].
        std: [...], including sqrt(dt).

    Returns:
        float32 [...], 0 or more.

    Source: Flow-GRPO, section 4.1 (R3's code leaves out the 1/2).

    >>> kl_mean(torch.ones(1, 2, 1), torch.zeros(1, 2, 1), torch.tensor([0.5]))
    tensor([2.])
    """
    gap = (mean.float() - mean_reference.float()) / std.float()[..., None, None]
    return 0.5 * gap.square().mean(dim=(-2, -1))


def kl_velocity(velocity: torch.Tensor, velocity_reference: torch.Tensor) -> torch.Tensor:
    """Measure the drift from the reference by the velocities: mean_{N,C} (v - v_ref)^2.

    Unlike `kl_mean` its weight does not depend on the step's noise.

    Args:
        velocity, velocity_reference: [..., N, C].

    Returns:
        float32 [...], 0 or more.

    >>> kl_velocity(torch.ones(1, 2, 1), torch.zeros(1, 2, 1))
    tensor([1.])
    """
    return (velocity.float() - velocity_reference.float()).square().mean(dim=(-2, -1))


def _score_step(step: StepInputs, eta: torch.Tensor) -> StepDistribution:
    dt = step.time - step.next_time
    data = step.x - step.time * step.velocity
    score = -(step.x - (1 - step.time) * data) / step.time.square()
    mean = step.x - (step.velocity - 0.5 * eta.square() * score) * dt
    return StepDistribution(mean=mean, std=eta * dt.sqrt(), eta=eta)


def _over_tokens(time: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(time, dtype=torch.float32, device=x.device)[..., None, None]
