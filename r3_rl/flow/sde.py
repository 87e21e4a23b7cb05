"""One stochastic denoising step: its Gaussian, a sample of it, and the log-prob of a sample.

Shapes: x, v, noise [..., N, C] with N latent tokens and C channels; times [...], one per image, so that a batch may
mix steps. Everything is computed in float32 whatever comes in: with bfloat16 the log-prob would be rounding noise.
"""

from __future__ import annotations

import torch

from r3_rl.errors import InputError
from r3_rl.flow.conventions import CONVENTIONS, StepDistribution, StepInputs


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

    x' ~ N(mean(x, v, t, t'), std(t, t')^2); the equations stand with each convention in `flow.conventions`.

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


def log_prob(step: StepDistribution, next_state: torch.Tensor) -> torch.Tensor:
    """Score a next state under the step, one number per image.

    log p = -1/2 mean_{N,C} ((x' - mean) / std)^2

    It is a mean, not a sum: the true log-ratio divided by N C, which is what the clip range is made for. The
    constants of a Gaussian cancel in every ratio and are left out.

    Args:
        step: the step's Gaussian.
        next_state: [..., N, C], x' as drawn.

    Returns:
        float32 [...].

    Source: Flow-GRPO and R3 (reduction by mean over an image's dimensions).

    >>> step = StepDistribution(mean=torch.zeros(1, 2, 1), std=torch.tensor([0.5]), eta=torch.tensor([1.0]))
    >>> log_prob(step, torch.ones(1, 2, 1))
    tensor([-2.])
    """
    scaled = (next_state.float() - step.mean) / step.std[..., None, None]
    return -0.5 * scaled.square().mean(dim=(-2, -1))


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


def _over_tokens(time: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(time, dtype=torch.float32, device=x.device)[..., None, None]
