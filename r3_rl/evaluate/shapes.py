"""The embedded world's measurements: loop, fixed drafts, swap test, questions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from r3_rl.evaluate.reflection import (
    CHUNK,
    FixedDrafts,
    Measured,
    measure_fixed,
    measure_loop,
    own_drafts,
    own_wrong_drafts,
    read,
    right,
    swap_test,
)
from r3_rl.policy.base import Policy, Sampling
from r3_rl.rollout.episode import LoopSettings, row_seeds
from r3_rl.rollout.protocol import split_thought
from r3_rl.types import ImagePiece, Prompt, TextPiece, Verdict
from r3_rl.worlds.shapes.data import ShapesStream, fixed_wrong_drafts, held_out_questions, wrong_scene
from r3_rl.worlds.shapes.drawing import render, roughen_pixels
from r3_rl.worlds.shapes.inspector import inspect, same_objects
from r3_rl.worlds.shapes.judging import edits_needed
from r3_rl.worlds.shapes.judging import judge as judge_scene
from r3_rl.worlds.shapes.language import apply_instruction
from r3_rl.worlds.shapes.pretraining import question_text
from r3_rl.worlds.shapes.prompts import HARD_TAGS, sample_prompts, sample_scene

ROUNDS = 2
SEED = 77_001
"""Of the held-out sets: the same for every run, so that runs can be compared."""


def judge(images: Sequence[torch.Tensor], prompts: Sequence[Prompt]) -> list[Verdict]:
    """The exact inspector's verdict: 1 or 0, with words."""
    if not images:
        return []
    seen = inspect(np.stack([image.numpy() for image in images]))
    found = [judge_scene(s.objects, p) for s, p in zip(seen, prompts, strict=True)]
    return [
        Verdict(total=float(j.strict), scores={"strict": float(j.strict), "partial": j.partial}, words=j.words)
        for j in found
    ]


@dataclass(kw_only=True, eq=False)
class ShapesBench:
    """The sets of one run: made once, measured before and after."""

    num_prompts: int = 320
    num_fixed: int = 500
    """Wrong drafts of the fixed set: half synthetic, half the base's own (as far as it has so many)."""
    num_right: int = 200
    num_questions: int = 300
    num_swap: int = 200
    """Wrong drafts of the policy as it is, for the swap test; fewer where four more drafts a prompt bring no more."""
    tags: tuple[str, ...] | None = None
    rounds: int = ROUNDS
    wrong: FixedDrafts | None = None
    rights: FixedDrafts | None = None

    def prompts(self) -> list[Prompt]:
        """The held-out prompts of every phase."""
        return sample_prompts(self.num_prompts, split="held_out", tags=self.tags, seed=SEED)

    def sets(self) -> dict[str, str]:
        """A digest of what each set asks for, known once something was measured: runs with equal ones can be compared.
        The base's own drafts among the fixed ones are told by their prompts: their pixels differ in the last digit
        from one processor to the next."""
        asked = {"prompts": self.prompts()}
        asked |= {name: list(d.prompts) for name, d in (("wrong", self.wrong), ("right", self.rights)) if d is not None}
        found = {name: _digest(p.text for p in prompts) for name, prompts in asked.items()}
        return found | {"questions": _digest(q.question for q in held_out_questions(self.num_questions, SEED + 4))}

    def measure(self, policy: Policy, settings: LoopSettings) -> Measured:
        """Everything, in one phase. The first call also fixes the drafts that both phases are judged on."""
        out = measure_loop(policy, self.prompts(), settings, judge, rounds=self.rounds, seed=SEED, harder=HARD_TAGS)
        if self.wrong is None or self.rights is None:
            self.wrong, self.rights = self._fix(policy, settings, out)
        out.values |= measure_fixed(policy, self.wrong, self.rights, settings, judge, seed=SEED + 1).values
        own = own_wrong_drafts(policy, out.trajectories, settings, judge, count=self.num_swap, seed=SEED + 7)
        out.values |= swap_test(policy, own, settings, seed=SEED + 2).values
        out.values["questions"] = measure_questions(policy, self.num_questions)
        return out

    def _fix(self, policy: Policy, settings: LoopSettings, measured: Measured) -> tuple[FixedDrafts, FixedDrafts]:
        own_wrong = own_drafts(measured.trajectories, wanted=0.0, limit=self.num_fixed // 2)
        synthetic = fixed_wrong_drafts(self.num_fixed - len(own_wrong.images), tags=self.tags)
        wrong = FixedDrafts(
            prompts=tuple(d.prompt for d in synthetic), images=tuple(torch.from_numpy(d.image) for d in synthetic)
        )
        own_right = own_drafts(measured.trajectories, wanted=1.0, limit=self.num_right // 2)
        return wrong + own_wrong, self._right_renders(self.num_right - len(own_right.images)) + own_right

    def _right_renders(self, count: int) -> FixedDrafts:
        rng = np.random.default_rng(SEED + 3)
        prompts = sample_prompts(count, split="held_out", tags=self.tags, seed=rng)
        images = roughen_pixels(render([sample_scene(p, rng) for p in prompts]), rng)
        return FixedDrafts(prompts=tuple(prompts), images=tuple(torch.from_numpy(i) for i in images))


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def measure_questions(policy: Policy, count: int) -> list[float]:
    """Questions about images of the world, answered by the likeliest words: 1 where the answer after the thought is
    right."""
    asked = held_out_questions(count, SEED + 4)
    hits: list[float] = []
    for start in range(0, count, CHUNK):
        part = asked[start : start + CHUNK]
        contexts = [
            (ImagePiece(image=torch.from_numpy(q.image)), TextPiece(text=question_text(q.question))) for q in part
        ]
        texts = policy.write(
            contexts, Sampling(max_new_tokens=64, temperature=0.0), row_seeds(SEED, start, len(contexts))
        )
        hits += [float(split_thought(t.text)[1] == q.answer) for t, q in zip(texts, part, strict=True)]
    return hits


def measure_edits(policy: Policy, count: int, settings: LoopSettings) -> list[float]:
    """True instructions on images of the world: 1 where the drawn image shows what the target shows."""
    edits = ShapesStream(seed=SEED + 5).edits(count)
    hits: list[float] = []
    for start in range(0, count, CHUNK):
        part = edits[start : start + CHUNK]
        contexts = [
            (ImagePiece(image=torch.from_numpy(e.source), use="edit"), TextPiece(text=e.instruction)) for e in part
        ]
        drawn = policy.draw(contexts, [settings.refine.drawing] * len(part), row_seeds(SEED, start, len(part)))
        got = inspect(np.stack([d.image.numpy() for d in drawn]))
        want = inspect(np.stack([e.target for e in part]))
        hits += [float(same_objects(a.objects, b.objects)) for a, b in zip(got, want, strict=True)]
    return hits


def measure_critiques(policy: Policy, count: int, settings: LoopSettings) -> list[float]:
    """Critiques of synthetic wrong drafts, rough ones included: 1 where following the instruction exactly would leave
    fewer edits to the prompt."""
    drafts = fixed_wrong_drafts(count)
    given = FixedDrafts(
        prompts=tuple(d.prompt for d in drafts), images=tuple(torch.from_numpy(d.image) for d in drafts)
    )
    hits: list[float] = []
    for critique, draft in zip(read(policy, given, settings, SEED + 6), drafts, strict=True):
        after = apply_instruction(draft.scene, critique.instruction)
        hits.append(
            float(after is not None and edits_needed(after, draft.prompt) < edits_needed(draft.scene, draft.prompt))
        )
    return hits


def synthetic_nodes(count: int, seed: int, *, tags: Sequence[str] | None = None) -> list[tuple[Prompt, torch.Tensor]]:
    """Wrong images for prompts of the training split, drawn by the world, for `tree.synthetic_fraction`."""
    rng = np.random.default_rng(seed)
    prompts = sample_prompts(count, split="train", tags=tags, seed=rng)
    scenes = [wrong_scene(sample_scene(p, rng), p, rng, rough_share=0.25) for p in prompts]
    images = roughen_pixels(render(scenes), rng)
    return [(p, torch.from_numpy(i)) for p, i in zip(prompts, images, strict=True)]


__all__ = [
    "ShapesBench",
    "judge",
    "measure_critiques",
    "measure_edits",
    "measure_questions",
    "right",
    "synthetic_nodes",
]
