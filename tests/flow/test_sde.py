from __future__ import annotations

import math

import pytest
import torch

from r3_rl.errors import InputError
from r3_rl.flow import (
    CONVENTIONS,
    can_be_stochastic,
    euler_step,
    kl_mean,
    kl_velocity,
    log_prob,
    sample,
    shifted_schedule,
    stochastic_step,
)

SCHEDULE = shifted_schedule(9, 3.0)
ALL = sorted(CONVENTIONS)


@pytest.fixture
def latent():
    """x, v and noise of one image per step of the schedule but the last: [7, 5, 3]."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(3, 7, 5, 3, generator=generator).unbind()


def step_of(x, velocity, convention, *, rows=slice(0, 7), eta=0.7):
    return stochastic_step(
        x, velocity, SCHEDULE[:-2][rows], SCHEDULE[1:-1][rows], convention, eta, second_time=SCHEDULE[1]
    )


@pytest.mark.parametrize("convention", ALL)
def test_a_replayed_step_has_ratio_one_whatever_it_is_batched_with(latent, convention):
    x, velocity, noise = latent
    step = step_of(x, velocity, convention)
    drawn = sample(step, noise)
    together = log_prob(step, drawn)
    assert together.shape == (7,)
    for row in range(7):
        rows = slice(row, row + 1)
        alone = log_prob(step_of(x[rows], velocity[rows], convention, rows=rows), drawn[rows])
        assert float((alone - together[rows]).exp().sub(1).abs()) < 1e-6


@pytest.mark.parametrize("convention", ALL)
def test_everything_is_float32_even_from_bfloat16(latent, convention):
    x, velocity, _ = (value.bfloat16() for value in latent)
    low, full = step_of(x, velocity, convention), step_of(x.float(), velocity.float(), convention)
    assert low.mean.dtype == low.std.dtype == torch.float32
    assert torch.equal(low.mean, full.mean)
    assert euler_step(x, velocity, SCHEDULE[:-2], SCHEDULE[1:-1]).dtype == torch.float32


@pytest.mark.parametrize("convention", ALL)
def test_a_step_keeps_the_marginal(convention):
    # One data point at 0: x = t n and v = n, so x' must have standard deviation t' (exactly for cps, else as dt -> 0).
    time = torch.tensor([0.3, 0.5, 0.7, 0.9])
    errors = []
    for dt in (0.02, 0.01):
        one = torch.ones(4, 1, 1)
        step = stochastic_step(time[:, None, None] * one, one, time, time - dt, convention, 0.7, second_time=0.95)
        errors.append(((step.mean.flatten().square() + step.std.square()).sqrt() - (time - dt)).abs().max().item())
    if convention == "cps":
        assert max(errors) < 1e-6
    else:  # second order: a wrong sign or factor in the score term leaves a first-order error, which only halves
        assert errors[1] < errors[0] / 3


@pytest.mark.parametrize("convention", ALL)
def test_gradient_reaches_the_velocity(latent, convention):
    x, velocity, noise = latent
    velocity.requires_grad_(True)
    drawn = sample(step_of(x, velocity, convention), noise).detach()
    log_prob(step_of(x, velocity, convention), drawn).sum().backward()
    assert velocity.grad is not None and bool((velocity.grad.abs().amax(dim=(1, 2)) > 0).all())


def test_log_prob_is_the_gaussian_density_by_dimension_but_for_its_constants(latent):
    x, velocity, noise = latent
    step = step_of(x, velocity, "r3_monotonic")
    drawn = step.mean + noise
    density = torch.distributions.Normal(step.mean, step.std[:, None, None]).log_prob(drawn).mean(dim=(1, 2))
    constants = step.std.log() + 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(log_prob(step, drawn) - constants, density)


def test_kl_mean_is_the_divergence_of_the_two_gaussians(latent):
    x, velocity, _ = latent
    step, other = step_of(x, velocity, "flow_grpo"), step_of(x, velocity + 0.1, "flow_grpo")
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(step.mean, step.std[:, None, None]), normal(other.mean, step.std[:, None, None])
    )
    torch.testing.assert_close(kl_mean(step.mean, other.mean, step.std), expected.mean(dim=(1, 2)))
    torch.testing.assert_close(kl_velocity(velocity, velocity + 0.1), torch.full((7,), 0.01))


def test_without_noise_level_the_step_would_be_the_ode(latent):
    x, velocity, _ = latent
    step = step_of(x, velocity, "r3_constant", eta=1e-6)
    torch.testing.assert_close(step.mean, euler_step(x, velocity, SCHEDULE[:-2], SCHEDULE[1:-1]))


def test_monotonic_and_flow_grpo_agree_once_the_clamp_is_passed(latent):
    x, velocity, _ = latent
    late = SCHEDULE[:-2] < 0.95
    ours, theirs = step_of(x, velocity, "r3_monotonic"), step_of(x, velocity, "flow_grpo")
    assert 0 < int(late.sum()) < 7
    torch.testing.assert_close(ours.mean[late], theirs.mean[late], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.std[late], theirs.std[late])
    assert not torch.allclose(ours.std[~late], theirs.std[~late], rtol=1e-2)


def test_cps_keeps_the_weight_of_noise(latent):
    x, velocity, _ = latent
    step = step_of(x, velocity, "cps", eta=1.0)
    data = x - SCHEDULE[:-2, None, None] * velocity
    torch.testing.assert_close(step.mean, (1 - SCHEDULE[1:-1, None, None]) * data)
    torch.testing.assert_close(step.std, SCHEDULE[1:-1])


@pytest.mark.parametrize("convention", ALL)
def test_the_last_step_is_refused_exactly_where_it_cannot_be_scored(latent, convention):
    x, velocity, noise = (value[:1] for value in latent)
    ends = SCHEDULE[-2:-1], SCHEDULE[-1:]
    if can_be_stochastic(convention, 0.0):
        step = stochastic_step(x, velocity, *ends, convention, 0.7)
        assert bool(log_prob(step, sample(step, noise)).isfinite().all())
    else:
        with pytest.raises(InputError, match="adds no noise"):
            stochastic_step(x, velocity, *ends, convention, 0.7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"convention": "flowgrpo"}, "flow_grpo"),
        ({"next_time": torch.tensor(1.0)}, "0 <= t' < t <= 1"),
        ({"time": torch.tensor(1.5)}, "0 <= t' < t <= 1"),
        ({"time": torch.tensor(float("nan"))}, "0 <= t' < t <= 1"),
        ({"eta": 0.0}, "adds no noise"),
        ({"convention": "cps", "eta": 1.5}, "outside"),
        ({"convention": "flow_grpo"}, "second_time"),
    ],
)
def test_senseless_steps_are_refused_with_the_fix(change, message):
    arguments = {"time": torch.tensor(1.0), "next_time": torch.tensor(0.5), "convention": "r3_constant", "eta": 0.5}
    one = torch.ones(2, 3, 1)
    with pytest.raises(InputError, match=message):
        stochastic_step(one, one, **(arguments | change))
