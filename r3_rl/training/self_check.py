"""What every run proves before its first step: the policy scores its own samples as sampled, and gradient arrives.

On-policy importance ratio |ratio - 1| below 1e-4 in float32 for every token and step of plan, draft, critique and
refinement, and below 0.05 on average in bfloat16, where rounding may move a single unlikely token further. Every branch
that is trained gets gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch

from r3_rl import ranks
from r3_rl.errors import RunError
from r3_rl.modalities import Segment
from r3_rl.nodes import always_edits
from r3_rl.policy.adapters import trainable_parameters
from r3_rl.policy.backbone import branch_of
from r3_rl.policy.base import Policy
from r3_rl.rollout.engine import Engine
from r3_rl.stages.settings import DrawingPlan, LoopSettings
from r3_rl.training.batcher import Batcher
from r3_rl.training.optimizer import total_norm
from r3_rl.training.parallel import Learner
from r3_rl.types import Prompt

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
_COARSEST = 0.05
_TOGETHER = (("plan", "draft"), ("critique",), ("refinement",))
"""Stages that are replayed together: a plan and its draft are one row."""


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """What was measured."""

    deviation: dict[str, float]
    """Largest |ratio - 1| of plan, draft, critique and refinement."""
    mean_deviation: dict[str, float]
    """Mean |ratio - 1| of their tokens and steps."""
    gradient_norm: dict[str, float]
    """By branch."""

    def __str__(self) -> str:
        ratios = ", ".join(f"{name} {value:.1e}" for name, value in self.deviation.items())
        norms = ", ".join(f"{name} {value:.2g}" for name, value in self.gradient_norm.items())
        return f"self-check: |ratio - 1| {ratios}; gradient {norms}"


def self_check(
    policy: Policy,
    prompts: Sequence[Prompt],
    settings: LoopSettings,
    *,
    seed: int = 0,
    rollout: AbstractContextManager[None] | None = None,
    learner: Learner | None = None,
    batcher: Batcher | None = None,
) -> SelfCheck:
    """Two rollouts of every stage, replayed as an update would replay them.

    Args:
        policy: as it will be trained.
        prompts: the first two are used.
        settings: of the run.
        seed: of the rollouts.
        rollout: what the run's rollouts happen in (merged weights, say).
        learner, batcher: of the run, if its weights are in shards in an update; then every process checks, and all the
            same rollouts.

    Raises RunError that says which stage or branch is wrong.
    """
    policy.module.eval()
    with torch.no_grad(), rollout or nullcontext():
        stages = _rollouts(policy, list(prompts)[:2], settings, seed)
    dtype, branches = next(policy.module.parameters()).dtype, policy.spec.branches
    tolerance = TOLERANCE.get(dtype, _COARSEST)
    gaps: dict[str, torch.Tensor] = {}
    together = [{name: stages[name] for name in names if stages[name]} for names in _TOGETHER]
    together = [of_stages for of_stages in together if of_stages]
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward
    passes: AbstractContextManager[None] = nullcontext()
    if learner is not None and batcher is not None and learner.gathers:
        backward, passes = learner.backward, learner.collecting(len(together), batcher)
    with passes:
        for of_stages in together:
            gaps |= _replayed(policy, of_stages, backward)
    deviation = {name: float(gap.max()) for name, gap in gaps.items()}
    means = {name: float(gap.mean()) for name, gap in gaps.items()}
    judged = deviation if dtype == torch.float32 else means
    for name, value in judged.items():
        if not value <= tolerance:
            raise RunError(
                f"self-check: the {name} is scored differently from how it was sampled, |ratio - 1| = {value:.2g}",
                hint="rollout and replay must use the same weights, guidance, temperature and truncation",
            )
    stepped = {branch: list(p.values()) for branch, p in trainable_parameters(policy.module, branches).items() if p}
    if learner is not None:  # shards, or what stands in for them
        by_branch = {p: branch_of(name, branches) for p, name in learner.names.items()}
        stepped = {branch: [p for p, own in by_branch.items() if own == branch] for branch in stepped}
    copies = ranks.count() if learner is not None and learner.in_parts else 1
    norms = {branch: _norm(parameters) / copies for branch, parameters in stepped.items()}
    policy.module.zero_grad(set_to_none=True)
    if learner is not None:
        learner.zero_grad()
        learner.gather()
    for branch, norm in norms.items():
        if not norm > 0:
            raise RunError(f"self-check: no gradient reaches the {branch} branch", hint="check lora.branches")
    return SelfCheck(deviation=deviation, mean_deviation=means, gradient_norm=norms)


def _rollouts(policy: Policy, prompts: list[Prompt], settings: LoopSettings, seed: int) -> dict[str, list[Segment]]:
    scored = replace(settings, draft=_scored(settings.draft), refine=_scored(settings.refine))
    engine = Engine(policy=policy, settings=scored)
    drafts = engine.drafts(prompts, seed=seed)
    critiques = engine.critiques(drafts, seed=seed)
    # whatever the critique says, a refinement is drawn from its words: the check must not depend on its opinion
    refined = engine.refinements([always_edits(critique) for critique in critiques], seed=seed)
    plans = [node.parent for node in drafts]
    return {
        "plan": [plan.sample for plan in plans if plan and plan.sample],
        "draft": [node.sample for node in drafts if node.sample],
        "critique": [node.sample for node in critiques if node.sample],
        "refinement": [node.sample for node in refined if node and node.sample],
    }


def _scored(plan: DrawingPlan) -> DrawingPlan:
    """Stochastic at the first step, in the middle and at the end: with and without guidance, with much and little
    noise, since a wrong velocity hides in much noise."""
    last = plan.num_possible - 1
    return replace(plan, drawing=replace(plan.drawing, sde_steps=tuple(sorted({0, last // 2, last}))))


def _replayed(
    policy: Policy, stages: dict[str, list[Segment]], backward: Callable[[torch.Tensor], None]
) -> dict[str, torch.Tensor]:
    """Every |ratio - 1| by stage; leaves the gradient of the log-probs behind."""
    names = [name for name, segments in stages.items() for _ in segments]
    segments = [segment for of_stage in stages.values() for segment in of_stage]
    gaps: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    total = torch.zeros(())
    for name, segment, result in zip(names, segments, policy.replay(segments), strict=True):
        new = result.log_probs
        gaps[name].append(((new.detach().cpu() - segment.log_probs).exp() - 1).abs())
        # squares, or the score function of on-policy samples could cancel
        total = total + new.square().sum().cpu()
    if total.requires_grad:  # not so for texts of a run that trains the generation branch alone
        backward(total)
    return {name: torch.cat(found) for name, found in gaps.items()}  # nan stays


def _norm(parameters: Iterable[torch.nn.Parameter]) -> float:
    return float(total_norm(p.grad for p in parameters if p.grad is not None))
