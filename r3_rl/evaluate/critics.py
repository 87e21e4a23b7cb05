"""What a refinement owes to its critique: the same wrong drafts, redrawn once by what two other critics say.

The oracle is a world's own true instruction: more than that no critic can give this painter. The stranger says what the
policy's critic said of another draft: what is repaired then is owed to drawing again, not to looking. Shapes: n drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from r3_rl.evaluate.measured import Values, chunks, right
from r3_rl.evaluate.reflection import FixedDrafts, Judge, read
from r3_rl.nodes import given_critique
from r3_rl.policy.base import Policy
from r3_rl.rollout.engine import Engine
from r3_rl.stages.settings import LoopSettings
from r3_rl.worlds.base import World


def measure_critics(
    world: World[Any], policy: Policy, drafts: FixedDrafts, settings: LoopSettings, judge: Judge, *, seed: int
) -> Values:
    """`repaired_by_oracle` and `repaired_by_stranger`, beside `wrong_drafts_repaired` by the policy's own critic.

    Args:
        world: inspects the drafts and says what would help.
        policy: reads and redraws.
        drafts: [n] wrong ones.
        settings: of the loop.
        judge: says whether a refinement is right.
        seed: of what the policy samples, and of what an instruction leaves free.

    Returns:
        1 for a draft that is right after one refinement; 0 also where a critic has nothing to say.
    """
    if not drafts.images:
        return {}
    rng = np.random.default_rng(seed)
    seen = world.inspect(np.stack([image.numpy() for image in drafts.images]))
    truths = [world.repair(scene, prompt, rng) or "" for scene, prompt in zip(seen, drafts.prompts, strict=True)]
    own = [critique.instruction for critique in read(policy, drafts, settings, seed)]
    others = own[1:] + own[:1]
    return {
        "repaired_by_oracle": repaired(policy, drafts, truths, settings, judge, seed=seed),
        "repaired_by_stranger": repaired(policy, drafts, others, settings, judge, seed=seed),
    }


def repaired(
    policy: Policy,
    drafts: FixedDrafts,
    instructions: Sequence[str],
    settings: LoopSettings,
    judge: Judge,
    *,
    seed: int,
) -> list[float]:
    """1 for each draft that is right after one refinement by its instruction, 0 where the instruction is empty."""
    engine, images = Engine(policy=policy, settings=settings), []
    for part in chunks(len(drafts.images)):
        said = zip(engine.roots(drafts.nodes(part)), instructions[part], strict=True)
        drawn = engine.refinements([given_critique(root, words) for root, words in said], seed=seed + part.start)
        images += [node.image if node is not None else None for node in drawn]
    hits = [0.0] * len(images)
    asked = [i for i, image in enumerate(images) if image is not None]
    made: list[torch.Tensor] = [image for image in images if image is not None]
    for i, verdict in zip(asked, judge(made, [drafts.prompts[i] for i in asked]) if made else [], strict=True):
        hits[i] = right(verdict)
    return hits
