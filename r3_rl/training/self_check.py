"""What every run proves before its first step: the policy scores its own samples as sampled, and gradient arrives.

On-policy importance ratio |ratio - 1| below 1e-4 in float32 (0.05 in bfloat16) for plan, draft, critique and
refinement; every trained branch gets gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from r3_rl.errors import RunError
from r3_rl.policy.adapters import trainable_parameters
from r3_rl.policy.base import Policy
from r3_rl.rollout.episode import LoopSettings, make_critiques, make_drafts
from r3_rl.rollout.protocol import edit
from r3_rl.types import Prompt, Segment, TextPiece

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """What was measured."""

    deviation: dict[str, float]
    """Largest |ratio - 1| of plan, draft, critique and refinement."""
    gradient_norm: dict[str, float]
    """By branch."""

    def __str__(self) -> str:
        ratios = ", ".join(f"{name} {value:.1e}" for name, value in self.deviation.items())
        norms = ", ".join(f"{name} {value:.2g}" for name, value in self.gradient_norm.items())
        return f"self-check: |ratio - 1| {ratios}; gradient {norms}"


def self_check(policy: Policy, prompts: Sequence[Prompt], settings: LoopSettings, *, seed: int = 0) -> SelfCheck:
    """Two rollouts of every stage, replayed; raises RunError that says which stage or branch is wrong."""
    prompts = list(prompts)[:2]
    draft = replace(settings.draft.drawing, sde_steps=(0,))
    rounds = make_drafts(policy, prompts, settings, [draft] * len(prompts), seed)
    images = [r.image.image for r in rounds]
    critiques = make_critiques(policy, images, prompts, settings, seed)
    # whatever the critique says, a refinement is drawn from its words: the check must not depend on its opinion
    contexts = [
        (edit(image), TextPiece(text=c.instruction or c.segment.text)) for image, c in zip(images, critiques, strict=True)
    ]
    refine = replace(settings.refine.drawing, sde_steps=(0,))
    refined = policy.draw(contexts, [refine] * len(contexts), [seed + 7, seed + 8])
    stages: dict[str, list[Segment]] = {
        "plan": [r.plan for r in rounds if r.plan is not None],
        "draft": [r.image for r in rounds],
        "critique": [c.segment for c in critiques],
        "refinement": list(refined),
    }
    dtype = next(policy.module.parameters()).dtype
    deviation = {}
    for name, segments in stages.items():
        if segments:
            deviation[name] = _deviation(policy, segments)
            if not deviation[name] <= TOLERANCE.get(dtype, 0.05):
                raise RunError(
                    f"self-check: the {name} is scored differently from how it was sampled, |ratio - 1| = "
                    f"{deviation[name]:.2g}",
                    hint="rollout and replay must use the same weights, guidance, temperature and truncation",
                )
    norms = {branch: _norm(parameters.values()) for branch, parameters in trainable_parameters(policy.module).items()}
    policy.module.zero_grad(set_to_none=True)
    for branch, parameters in trainable_parameters(policy.module).items():
        if parameters and not norms[branch] > 0:
            raise RunError(f"self-check: no gradient reaches the {branch} branch", hint="check lora.branches")
    return SelfCheck(deviation=deviation, gradient_norm={b: n for b, n in norms.items() if n > 0})


def _deviation(policy: Policy, segments: Sequence[Segment]) -> float:
    """Largest |ratio - 1|; leaves the gradient of the summed log-probs behind."""
    worst = 0.0
    total: torch.Tensor | None = None
    for segment, result in zip(segments, policy.replay(segments), strict=True):
        new = result if isinstance(result, torch.Tensor) else result.log_probs
        ratio = (new.detach().cpu() - segment.log_probs).exp()
        worst = max(worst, float((ratio - 1).abs().max()))
        # squares, or the score function of on-policy samples could cancel
        total = new.square().sum() if total is None else total + new.square().sum()
    assert total is not None
    total.backward()
    return worst


def _norm(parameters: object) -> float:
    squares = [p.grad.float().square().sum() for p in parameters if p.grad is not None]  # type: ignore[attr-defined]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
