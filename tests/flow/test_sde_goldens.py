"""Every convention against the steps that three public samplers recorded."""

from __future__ import annotations

import math
import re

import pytest
import torch

from r3_rl.flow import StepDistribution, euler_step, kl_mean, log_prob, sample, stochastic_step

FILE = "10_sde_steps.npz"
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


def density(step, drawn):
    """The log-density with its constants, as the records have it."""
    return log_prob(step, drawn) - step.std.log() - 0.5 * math.log(2 * math.pi)


def names(arrays, pattern):
    found = sorted(key.removesuffix("_mean") for key in arrays if re.fullmatch(pattern + "_mean", key))
    if not found:
        pytest.skip(f"{FILE} holds nothing called {pattern}")
    return found


def tokens(images):
    """[..., C, H, W] -> [..., H W, C]."""
    return images.flatten(-2).transpose(-1, -2)


def both_steps(x, velocity, sigmas, convention, eta) -> tuple[StepDistribution, StepDistribution]:
    """The step of a velocity and of a slightly different one, for all times at once: [steps, batch, N, C]."""
    x, velocity = (value[None].expand(len(sigmas) - 1, *value.shape) for value in (x, velocity))

    def step(moved):
        return stochastic_step(x, moved, sigmas[:-1, None], sigmas[1:, None], convention, eta, second_time=sigmas[1])

    return step(velocity), step(0.9 * velocity + 0.05)


def test_r3_steps(golden):
    arrays = golden(FILE)
    # The record reduces over the channels of each token: here every token stands as an image of one token.
    x, velocity, noise = (arrays[f"r3_{key}_tok"][:, None] for key in ("x", "v", "eps"))
    for name in names(arrays, r"r3_(constant|monotonic)_[\d.]+_f32"):
        _, mode, eta, _ = name.split("_")
        step, other = both_steps(x, velocity, arrays["sigmas"], f"r3_{mode}", float(eta))
        drawn = sample(step, noise)
        found = {
            "mean": step.mean[:, :, 0],
            "std": step.std[:, 0],
            "eta": step.eta[:, 0],
            "logp_other": log_prob(other, drawn),
            "logp_other_real": density(other, drawn),
            # the recorded value lacks the factor 1/2 of the divergence
            "kl_other": 2 * kl_mean(step.mean, other.mean, other.std),
        }
        for key, value in found.items():
            torch.testing.assert_close(
                value,
                arrays[f"{name}_{key}"],
                **TOLERANCE,
                msg=lambda text, key=key, name=name: f"{name}_{key}: {text}",
            )


def test_float32_is_close_to_the_float64_record(golden):
    arrays = golden(FILE)
    x, velocity = (arrays[f"r3_{key}_tok"][:, None] for key in ("x", "v"))
    for name in names(arrays, r"r3_(constant|monotonic)_[\d.]+_f64"):
        _, mode, eta, _ = name.split("_")
        step, _ = both_steps(x, velocity, arrays["sigmas"], f"r3_{mode}", float(eta))
        torch.testing.assert_close(step.mean[:, :, 0].double(), arrays[f"{name}_mean"], **TOLERANCE)


def test_flow_grpo_steps(golden):
    arrays = golden(FILE)
    x, velocity, noise = (tokens(arrays[key]) for key in ("x", "v", "eps"))
    for name in names(arrays, r"fg_[\d.]+"):
        step, other = both_steps(x, velocity, arrays["fg_sigmas"], "flow_grpo", float(name.split("_")[1]))
        drawn = sample(step, noise)
        torch.testing.assert_close(step.mean, tokens(arrays[f"{name}_mean"]), **TOLERANCE)
        # its returned "std" is eta: it has no sqrt(dt) in it
        torch.testing.assert_close(step.eta[:, 0], arrays[f"{name}_std_dev_t"], **TOLERANCE)
        torch.testing.assert_close(drawn, tokens(arrays[f"{name}_prev"]), **TOLERANCE)
        torch.testing.assert_close(density(other, drawn), arrays[f"{name}_logp_other"], **TOLERANCE)
        torch.testing.assert_close(density(step, drawn), arrays[f"{name}_logp_self"], **TOLERANCE)


def test_one_call_mixes_steps(golden):
    arrays = golden(FILE)
    sigmas, levels = arrays["fg_sigmas"], names(arrays, r"fg_[\d.]+")
    at = torch.stack([(arrays["fg_timesteps"] - time).abs().argmin() for time in arrays["fg_mixed_timesteps"]])
    recorded = arrays["fg_mixed_std"].flatten()
    level = min(levels, key=lambda name: float((arrays[f"{name}_std_dev_t"][at] - recorded).abs().sum()))
    x, velocity, noise = (tokens(arrays[key]) for key in ("x", "v", "eps"))
    eta = float(level.split("_")[1])
    step = stochastic_step(x, velocity, sigmas[at], sigmas[at + 1], "flow_grpo", eta, second_time=sigmas[1])
    drawn = sample(step, noise)
    torch.testing.assert_close(step.eta, recorded, **TOLERANCE)
    torch.testing.assert_close(step.mean, tokens(arrays["fg_mixed_mean"]), **TOLERANCE)
    torch.testing.assert_close(drawn, tokens(arrays["fg_mixed_prev"]), **TOLERANCE)
    torch.testing.assert_close(density(step, drawn), arrays["fg_mixed_logp"], **TOLERANCE)


@pytest.mark.parametrize(("kind", "convention"), [("flow", "flow_grpo"), ("dance", "dance")])
def test_mixgrpo_steps(golden, kind, convention):
    arrays = golden(FILE)
    x, velocity, noise = (tokens(arrays[key]) for key in ("x", "v", "eps"))
    for name in names(arrays, rf"mg_{kind}_[\d.]+_f32"):
        step, other = both_steps(x, velocity, arrays["sigmas"], convention, float(name.split("_")[2]))
        found = (density if kind == "flow" else log_prob)(other, sample(step, noise))
        torch.testing.assert_close(step.mean, tokens(arrays[f"{name}_mean"]), **TOLERANCE)
        torch.testing.assert_close(step.std[:, 0], arrays[f"{name}_std"], **TOLERANCE)
        torch.testing.assert_close(found, arrays[f"{name}_logp_other"], **TOLERANCE)


def test_the_ode_step_is_the_one_recorded(golden):
    arrays = golden(FILE)
    x, velocity, sigmas = tokens(arrays["x"]), tokens(arrays["v"]), arrays["sigmas"]
    for name in names(arrays, r"mg_flow_[\d.]+_f32"):
        found = euler_step(x[None], velocity[None], sigmas[:-1, None], sigmas[1:, None])
        torch.testing.assert_close(found, tokens(arrays[f"{name}_det_prev"]), **TOLERANCE)
