"""The start-up check finds what it is there to find."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from r3_rl.errors import RunError
from r3_rl.flow.guidance import Guidance
from r3_rl.modalities import ImageSegment, TextSegment
from r3_rl.policy.adapters import adapter_merged
from r3_rl.policy.base import Sampling
from r3_rl.training.self_check import self_check
from tests.policy.tiny import PAPER_GUIDANCE, PROMPTS, loop
from tests.training.rollouts import trained_policy

SETTINGS = loop(
    guidance=PAPER_GUIDANCE,
    plan=Sampling(max_new_tokens=6, temperature=0.8, top_p=0.8),
    critique=Sampling(max_new_tokens=6, temperature=0.8, top_p=0.8),
)


def planted(change):
    """A policy whose replay looks at segments that are changed."""
    policy = trained_policy()
    replay = policy.replay
    policy.replay = lambda segments: replay([change(s) for s in segments])
    return policy


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("num_prompts", [1, 3])
def test_a_sound_policy_passes(merged, num_prompts):
    policy = trained_policy()
    rollout = adapter_merged(policy.module) if merged else None
    check = self_check(policy, PROMPTS[:num_prompts], SETTINGS, rollout=rollout)
    assert set(check.deviation) == {"plan", "draft", "critique", "refinement"}
    assert max(check.deviation.values()) < 1e-4
    assert set(check.gradient_norm) == {"understanding", "generation"} and min(check.gradient_norm.values()) > 0
    assert "refinement" in str(check) and "generation" in str(check)
    assert all(p.grad is None for p in policy.module.parameters())


def test_without_plans_there_is_none_to_check():
    assert "plan" not in self_check(trained_policy(), PROMPTS, loop(plan=None)).deviation


def of(kind, **changes):
    return lambda s: replace(s, **changes) if isinstance(s, kind) else s


def guided_by(guidance):
    return lambda s: replace(s, drawing=replace(s.drawing, guidance=guidance)) if isinstance(s, ImageSegment) else s


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("plan", of(TextSegment, temperature=1.0)),
        ("plan", of(TextSegment, cutoff=None)),
        ("draft", guided_by(Guidance())),
        ("draft", guided_by(replace(PAPER_GUIDANCE, text=3.9))),
        ("draft", guided_by(replace(PAPER_GUIDANCE, interval=(0.0, 1.0)))),
        ("draft", guided_by(replace(PAPER_GUIDANCE, image=1.0))),
    ],
    ids=["temperature", "truncation", "no_guidance", "scale", "interval", "image_scale"],
)
def test_a_planted_fault_is_found_and_named(stage, change):
    with pytest.raises(RunError, match=f"the {stage} is scored differently from how it was sampled"):
        self_check(planted(change), PROMPTS, SETTINGS)


def test_a_fault_in_the_weights_of_the_rollout_is_found():
    """Rollouts on weights that the replay does not have: here, the adapter is left out."""
    policy = trained_policy(moved=0.3)
    with pytest.raises(RunError, match="scored differently"):
        self_check(policy, PROMPTS, SETTINGS, rollout=policy.reference())


def test_numbers_that_are_not_finite_do_not_pass():
    policy = trained_policy()
    policy.replay = broken(policy.replay)
    with pytest.raises(RunError, match=r"ratio - 1\| = nan"):
        self_check(policy, PROMPTS, SETTINGS)


def broken(replay):
    def spoilt(segments):
        return [replace(r, log_probs=r.log_probs * float("nan")) for r in replay(segments)]

    return spoilt


def test_a_branch_without_gradient_is_named():
    policy = trained_policy()
    for name, parameter in policy.module.named_parameters():
        if parameter.requires_grad and "_moe_gen" in name:
            parameter.register_hook(torch.zeros_like)
    with pytest.raises(RunError, match="no gradient reaches the generation branch"):
        self_check(policy, PROMPTS, SETTINGS)
