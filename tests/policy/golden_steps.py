"""Stochastic steps, advantages and clipped losses beside the recorded ones, for the golden table.

Their tests stand in tests/flow and tests/algorithm; here they become rows of the table. Errors are |difference| /
(1 + |recorded|), since log-probs of the first steps run into the hundreds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from r3_rl.algorithm.advantage import advantages as group_advantages
from r3_rl.algorithm.surrogates import LossInputs, clip
from r3_rl.flow import StepDistribution, log_prob, sample, stochastic_step
from tests.policy.golden_checks import Row, compare
from tests.policy.golden_set import arrays, golden_folder

SCALED = 1e-5


def density(step, drawn):
    """The log-density with its constants, as the records have it."""
    return log_prob(step, drawn) - step.std.log() - 0.5 * math.log(2 * math.pi)


def _scaled(name: str, ours: Tensor, recorded: Tensor) -> Row:
    row = compare(name, ours, recorded, SCALED)
    return replace(row, error=float(((ours - recorded).abs() / (1 + recorded.abs())).max()))


def _tokens(images: Tensor) -> Tensor:
    """[..., C, H, W] -> [..., H W, C]."""
    return images.flatten(-2).transpose(-1, -2)


def _both(x: Tensor, v: Tensor, sigmas: Tensor, convention: str, eta: float) -> list[StepDistribution]:
    """The step of a velocity and of the slightly different one that scores it, at every time: [steps, batch, N, C]."""
    x = x[None].expand(len(sigmas) - 1, *x.shape)
    times = (sigmas[:-1, None], sigmas[1:, None])
    return [
        stochastic_step(x, moved.expand_as(x), *times, convention, eta, second_time=sigmas[1])
        for moved in (v, 0.9 * v + 0.05)
    ]


def steps() -> Iterator[Row]:
    """Mean, deviation and log-prob of every recorded convention."""
    g = arrays("10_sde_steps")
    for m in g.match(r"r3_(constant|monotonic)_([\d.]+)_f32_mean"):
        name = m[0].removesuffix("_mean")
        x, v, noise = (g[f"r3_{key}_tok"][:, None] for key in ("x", "v", "eps"))
        step, other = _both(x, v, g["sigmas"], f"r3_{m[1]}", float(m[2]))
        drawn = sample(step, noise)
        yield _scaled(f"{name}_mean", step.mean[:, :, 0], g[f"{name}_mean"])
        yield _scaled(f"{name}_std", step.std[:, 0], g[f"{name}_std"])
        yield _scaled(f"{name}_logp_other", log_prob(other, drawn), g[f"{name}_logp_other"])
        yield _scaled(f"{name}_logp_other_real", density(other, drawn), g[f"{name}_logp_other_real"])
    x, v, noise = (_tokens(g[key]) for key in ("x", "v", "eps"))
    for m in g.match(r"fg_([\d.]+)_mean"):
        name = m[0].removesuffix("_mean")
        step, other = _both(x, v, g["fg_sigmas"], "flow_grpo", float(m[1]))
        drawn = sample(step, noise)
        yield _scaled(f"{name}_mean", step.mean, _tokens(g[f"{name}_mean"]))
        yield _scaled(f"{name}_prev", drawn, _tokens(g[f"{name}_prev"]))
        yield _scaled(f"{name}_logp_other", density(other, drawn), g[f"{name}_logp_other"])
    for m in g.match(r"mg_(flow|dance)_([\d.]+)_f32_mean"):
        name = m[0].removesuffix("_mean")
        step, other = _both(x, v, g["sigmas"], "flow_grpo" if m[1] == "flow" else "dance", float(m[2]))
        scores = (density if m[1] == "flow" else log_prob)(other, sample(step, noise))
        yield _scaled(f"{name}_mean", step.mean, _tokens(g[f"{name}_mean"]))
        yield _scaled(f"{name}_std", step.std[:, 0], g[f"{name}_std"])
        yield _scaled(f"{name}_logp_other", scores, g[f"{name}_logp_other"])


def advantages() -> Iterator[Row]:
    """Group advantages of three projects and their clipped losses."""
    path = golden_folder() / "11_advantages.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    recorded = json.loads(path.read_text(encoding="utf-8"))
    settings = (
        ("r3", "advantages", {"scale": "none"}),
        ("r3", "advantages_if_divide_std", {"scale": "group", "eps": 1e-6}),
        ("mixgrpo", "advantages", {"scale": "group", "eps": 1e-8}),
    )
    for project, key, options in settings:
        for i, case in enumerate(recorded.get(project, [])):
            rewards = torch.tensor(case["rewards"])
            ours = group_advantages(rewards, torch.zeros(len(rewards), dtype=torch.long), **options)
            yield _scaled(f"{project} {key} {i}", ours.values, torch.tensor(case[key]))
    for i, case in enumerate(recorded.get("flow_grpo", [])):
        names = sorted(set(case["prompts"]))
        groups = torch.tensor([names.index(prompt) for prompt in case["prompts"]])
        scale = "batch" if case["global_std"] else "group"
        ours = group_advantages(torch.tensor(case["rewards"]), groups, scale=scale, unbiased=False, eps=1e-4)
        yield _scaled(f"flow_grpo advantages {i}", ours.values, torch.tensor(case["advantages"]))
    for i, case in enumerate(recorded.get("losses", [])):
        new, old, gain = (torch.tensor(case[key]) for key in ("logp_new", "logp_old", "advantages"))
        inputs = LossInputs(
            log_probs=new, old_log_probs=old, advantages=gain, owner=torch.arange(len(new)), epsilon=case["clip"]
        )
        loss = clip(inputs).values.mean()
        yield _scaled(f"clipped loss {i}", loss, torch.tensor(case["mixgrpo_flow_loss"]))
