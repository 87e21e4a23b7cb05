"""What the policy says about images of a world: does it stop rightly, list exactly, answer questions?

Shapes: n images or questions; values are in the order of their set.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from r3_rl.evaluate.fixed_sets import fixed_drafts
from r3_rl.evaluate.measured import Values, chunks, entropies
from r3_rl.evaluate.reflection import read, stops_if_right
from r3_rl.modalities import ImagePiece, TextPiece
from r3_rl.policy.base import Policy, Sampling
from r3_rl.rollout.rows import row_seeds
from r3_rl.stages import ANSWER
from r3_rl.stages.protocol import split_thought
from r3_rl.stages.settings import LoopSettings
from r3_rl.types import Critique, Trajectory
from r3_rl.worlds.base import Question, World
from r3_rl.worlds.sets import Pair

ANSWER_TOKENS = 64
"""Most tokens of an answer: what is seen, and then the word."""


def of_own_images(world: World[Any], trajectories: Sequence[Trajectory], count: int, *, seed: int) -> list[Question]:
    """At most `count` questions about drafts, one each, of every kind in turn. The inspector reads what is drawn; a
    draft of which no answer is sure is left out."""
    images = [t.rounds[0].image.image.numpy() for t in trajectories]
    seen = world.inspect(np.stack(images)) if images else []
    rng, kinds = np.random.default_rng(seed), list(world.question_kinds)
    asked: list[Question] = []
    for image, scene in zip(images, seen, strict=True):
        if len(asked) == count or not kinds:
            break
        question = world.ask(image, scene, kinds[len(asked) % len(kinds)], rng)
        asked += [question] if question is not None else []
    return asked


def answers(policy: Policy, asked: Sequence[Question], sampling: Sampling, *, seed: int) -> list[float]:
    """1 if the word after the thought is the answer."""
    hits: list[float] = []
    sampling = replace(sampling, max_new_tokens=ANSWER_TOKENS, task=ANSWER.name)
    for part in chunks(len(asked)):
        these = asked[part]
        contexts = [(ImagePiece(image=torch.from_numpy(a.image)), TextPiece(text=a.text)) for a in these]
        texts = policy.write(contexts, sampling, row_seeds(seed, part.start, len(these)))
        hits += [float(split_thought(t.text)[1] == a.answer) for t, a in zip(texts, these, strict=True)]
    return hits


def measure_questions(
    policy: Policy, asked: Sequence[Question], sampling: Sampling, *, kinds: Iterable[str], seed: int
) -> Values:
    """`questions`, and the same by kind."""
    hits = answers(policy, asked, sampling, seed=seed)
    by_kind = {
        f"questions/{kind}": [hit for hit, a in zip(hits, asked, strict=True) if a.kind == kind] for kind in kinds
    }
    return {"questions": hits, **by_kind}


def measure_pairs(
    world: World[Any], policy: Policy, pairs: Sequence[Pair], settings: LoopSettings, *, seed: int
) -> Values:
    """`ita_fixed` (with `/right` and `/wrong`), `listing` and, of sampled critiques, `entropy_critique`: right images
    first, then the near misses."""
    shown = [*(p.right for p in pairs), *(p.near_miss for p in pairs)]
    said = read(policy, fixed_drafts(shown), settings, seed)
    values = {
        name.replace("ita", "ita_fixed"): hits
        for name, hits in stops_if_right(said[: len(pairs)], said[len(pairs) :]).items()
    }
    values["listing"] = exact_listings(world, said, [drawn.scene for drawn in shown])
    if settings.critique.temperature > 0:
        values["entropy_critique"] = entropies([c.segment for c in said])
    return values


def exact_listings(world: World[Any], said: Sequence[Critique], scenes: Sequence[Any]) -> list[float]:
    """1 if a critique lists exactly what its image shows."""
    listed = [world.read_listing(c.segment.text) for c in said]
    return [float(seen is not None and world.same(seen, s)) for seen, s in zip(listed, scenes, strict=True)]
