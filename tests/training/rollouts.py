"""Credits of real rollouts of the tiny policy, and the gradient that an update leaves."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import torch

from r3_rl.nodes import given_image
from r3_rl.policy.adapters import AdapterSettings
from r3_rl.policy.bagel.policy import BagelPolicy
from r3_rl.rollout.engine import Engine
from r3_rl.scoring.batch import ScoreBatch
from r3_rl.stages.settings import LoopSettings
from r3_rl.training.credit import Credit, CreditSettings
from r3_rl.training.earned import credit_drafts, credit_refinements
from r3_rl.types import Verdict
from tests.policy.tiny import PROMPTS, loop, pictures, tiny_policy

ADAPTER = AdapterSettings(rank=4, alpha=8.0)


def trained_policy(seed: int = 0, *, moved: float = 0.1) -> BagelPolicy:
    """With an adapter that has already learned something."""
    return tiny_policy(seed=seed, adapter=ADAPTER, moved=moved)


def reds(batch: ScoreBatch) -> Future[list[Verdict]]:
    """How red each image is: a score without ties."""
    answer: Future[list[Verdict]] = Future()
    answer.set_result([Verdict(total=float(i[..., 0].mean() / (i.mean() + 1) / 2)) for i in batch.images or ()])
    return answer


def step_credits(policy: BagelPolicy, settings: LoopSettings | None = None, *, scale: float = 100.0) -> list[Credit]:
    """Plans, drafts, critiques and refinements of two prompts, their advantages made large."""
    engine = Engine(policy=policy, submit=reds, settings=settings or loop())
    with torch.no_grad():
        drafts = engine.drafts(PROMPTS[:2], seed=1, plans=4, progress=0.0)
    images = [given_image(p, i, verdict=Verdict(total=0.3)) for p, i in zip(PROMPTS, pictures(2), strict=False)]
    credits = list(credit_drafts(drafts, CreditSettings()).credits)
    for seed in range(2, 20):  # a single refinement of an image has no peer: look for a step with several
        with torch.no_grad():
            ends = engine.round(engine.roots(images, num_rows=4), seed=seed, critiques=4, progress=0.0)
        more = credit_refinements(ends, CreditSettings()).credits
        if {c.stage for c in more} == {"critique", "refinement"}:
            break
    credits += more
    assert {c.stage for c in credits} == {"plan", "draft", "critique", "refinement"}
    return [Credit(segment=c.segment, advantage=scale * c.advantage, stage=c.stage) for c in credits]


def gradient(policy: BagelPolicy) -> torch.Tensor:
    """Of all trained parameters as one vector; the parameters keep none."""
    parameters = [p for p in policy.module.parameters() if p.requires_grad]
    flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
    policy.module.zero_grad(set_to_none=True)
    return flat


def names(credits: Sequence[Credit]) -> list[str]:
    """The stages, sorted."""
    return sorted(c.stage for c in credits)
