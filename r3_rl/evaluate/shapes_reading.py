"""What the policy says about images of the shapes world: does it stop rightly, list exactly, answer questions?

Shapes: n images or questions; values are in the order of their set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from r3_rl.evaluate.measured import Values, chunks, entropies
from r3_rl.evaluate.reflection import FixedDrafts, read, stops_if_right
from r3_rl.policy.base import Policy, Sampling
from r3_rl.rollout.rows import row_seeds
from r3_rl.stages.protocol import split_thought
from r3_rl.stages.settings import LoopSettings
from r3_rl.types import Critique, ImagePiece, TextPiece, Trajectory
from r3_rl.worlds.shapes.data import Answered
from r3_rl.worlds.shapes.inspector import inspect, same_objects
from r3_rl.worlds.shapes.language import parse_listing
from r3_rl.worlds.shapes.pairs import Pair
from r3_rl.worlds.shapes.pretraining import question_text
from r3_rl.worlds.shapes.questions import QUESTION_KINDS, ask
from r3_rl.worlds.shapes.scene import Scene

ANSWER_TOKENS = 64
"""Most tokens of an answer: what is seen, and then the word."""


@dataclass(frozen=True, kw_only=True)
class AskedImage:
    """A question about an image, and what its answer should be."""

    image: torch.Tensor
    """float32 [3, 36, 36] in [0, 1]."""
    question: str
    """Without its question mark."""
    answer: str
    kind: str
    """One of QUESTION_KINDS."""


def of_world(answered: Sequence[Answered]) -> list[AskedImage]:
    """Questions about images that the world drew."""
    return [
        AskedImage(image=torch.from_numpy(a.image), question=a.question, answer=a.answer, kind=a.kind)
        for a in answered
    ]  # fmt: skip


def of_own_images(trajectories: Sequence[Trajectory], count: int, *, seed: int) -> list[AskedImage]:
    """At most `count` questions about drafts, one each, of every kind in turn. The inspector reads what is drawn; a
    draft with a malformed object has no sure answer and is left out."""
    images = [t.rounds[0].image.image for t in trajectories]
    seen = inspect(np.stack([image.numpy() for image in images])) if images else []
    clean = [(image, s.objects) for image, s in zip(images, seen, strict=True) if not any(o.rough for o in s.objects)]
    rng = np.random.default_rng(seed)
    asked = []
    for number, (image, scene) in enumerate(clean[:count]):
        question = ask(scene, QUESTION_KINDS[number % len(QUESTION_KINDS)], rng)
        asked.append(AskedImage(image=image, question=question.text, answer=question.answer, kind=question.kind))
    return asked


def answers(policy: Policy, asked: Sequence[AskedImage], sampling: Sampling, *, seed: int) -> list[float]:
    """1 if the word after the thought is the answer."""
    hits: list[float] = []
    sampling = replace(sampling, max_new_tokens=ANSWER_TOKENS)
    for part in chunks(len(asked)):
        these = asked[part]
        contexts = [(ImagePiece(image=a.image), TextPiece(text=question_text(a.question))) for a in these]
        texts = policy.write(contexts, sampling, row_seeds(seed, part.start, len(these)))
        hits += [float(split_thought(t.text)[1] == a.answer) for t, a in zip(texts, these, strict=True)]
    return hits


def measure_questions(policy: Policy, asked: Sequence[AskedImage], sampling: Sampling, *, seed: int) -> Values:
    """`questions`, and the same by kind."""
    hits = answers(policy, asked, sampling, seed=seed)
    by_kind = {
        f"questions/{kind}": [hit for hit, a in zip(hits, asked, strict=True) if a.kind == kind]
        for kind in QUESTION_KINDS
    }
    return {"questions": hits, **by_kind}


def measure_pairs(policy: Policy, pairs: Sequence[Pair], settings: LoopSettings, *, seed: int) -> Values:
    """`ita_fixed` (with `/right` and `/wrong`), `listing` and, of sampled critiques, `entropy_critique`: right images
    first, then the near misses."""
    prompts = tuple(p.prompt for p in pairs)
    images = tuple(torch.from_numpy(i) for i in (*(p.right for p in pairs), *(p.near_miss for p in pairs)))
    scenes = [*(p.right_scene for p in pairs), *(p.near_miss_scene for p in pairs)]
    said = read(policy, FixedDrafts(prompts=prompts * 2, images=images), settings, seed)
    values = {
        name.replace("ita", "ita_fixed"): hits
        for name, hits in stops_if_right(said[: len(pairs)], said[len(pairs) :]).items()
    }
    values["listing"] = exact_listings(said, scenes)
    if not settings.critique.greedy:
        values["entropy_critique"] = entropies([c.segment for c in said])
    return values


def exact_listings(said: Sequence[Critique], scenes: Sequence[Scene]) -> list[float]:
    """1 if a critique lists what its image shows: each object once, in its cell, malformed ones as such."""
    listed = [parse_listing(c.segment.text) for c in said]
    return [float(objects is not None and same_objects(objects, s)) for objects, s in zip(listed, scenes, strict=True)]
