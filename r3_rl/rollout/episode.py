"""The loop: plan and draft, then critique and refinement until the critique stops.

Every function takes rows and gives rows in the same order; rows of a group share their context pieces by identity, so
a backbone encodes them once. A stopped trajectory leaves the batch: it costs nothing afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from r3_rl.flow.windows import choose_steps
from r3_rl.policy.base import Drawing, Policy, Sampling
from r3_rl.rollout.protocol import Protocol, edit, look
from r3_rl.types import Context, Critique, ImageSegment, Prompt, Round, TextPiece, TextSegment, Trajectory


@dataclass(frozen=True, kw_only=True)
class DrawingPlan:
    """How a stage draws, and which of its steps are stochastic in training."""

    drawing: Drawing
    """Everything but the stochastic steps."""
    window: str = "random"
    num_sde_steps: int = 2
    window_size: int | None = None
    shared_noise: bool = False
    """Peers start from the same noise."""

    def rows(self, num_groups: int, num_generations: int, seed: int, progress: float) -> list[Drawing]:
        """Drawings of a training step: peers share their stochastic steps, so only their samples differ."""
        rng = np.random.default_rng(seed)
        most = self.drawing.num_steps - (self.drawing.convention == "cps")
        within, window = most, self.window
        size = self.window_size
        if window == "random" and size is not None:
            window = "first"
        out = []
        for _ in range(num_groups):
            steps = choose_steps(
                window, within, self.num_sde_steps, window_size=size, progress=progress, rng=rng
            )
            out += [replace(self.drawing, sde_steps=steps)] * num_generations
        return out


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How the policy writes and draws at each stage."""

    protocol: Protocol
    plan: Sampling | None = field(default_factory=Sampling)
    """None draws straight from the prompt."""
    critique: Sampling = field(default_factory=Sampling)
    draft: DrawingPlan = field(default_factory=lambda: DrawingPlan(drawing=Drawing()))
    refine: DrawingPlan = field(default_factory=lambda: DrawingPlan(drawing=Drawing()))
    show_prompt: bool = False
    """Refinements see the prompt beside the instruction."""

    def for_evaluation(self, temperature: float) -> LoopSettings:
        """The same loop without exploration: ODE drawing, texts at `temperature` (0: the likeliest words)."""
        calm = {"temperature": temperature, "top_p": 1.0}
        return replace(
            self,
            plan=replace(self.plan, **calm) if self.plan else None,
            critique=replace(self.critique, **calm),
        )


def row_seeds(seed: int, stage: int, count: int) -> list[int]:
    """Seeds of rows, far apart whatever the run's seed; `stage` keeps plan, draft, critique and refinement apart."""
    return [int(x) >> 2 for x in np.random.SeedSequence((seed, stage)).generate_state(count, np.uint64)]


def make_drafts(
    policy: Policy,
    prompts: Sequence[Prompt],
    settings: LoopSettings,
    drawings: Sequence[Drawing],
    seed: int,
    *,
    group: int = 1,
) -> list[Round]:
    """`group` drafts a prompt, peers side by side. drawings: one a row."""
    contexts: list[Context] = []
    for prompt in prompts:
        contexts += [settings.protocol.reason_context(prompt)] * group
    plans: list[TextSegment | None] = [None] * len(contexts)
    if settings.plan is not None:
        plans = list(policy.write(contexts, settings.plan, row_seeds(seed, 0, len(contexts))))
        contexts = [
            (*c, TextPiece(text=p.text, token_ids=p.token_ids)) for c, p in zip(contexts, plans, strict=True) if p
        ]
    seeds = row_seeds(seed, 1, len(contexts))
    images = policy.draw(contexts, drawings, seeds, _noise_seeds(settings.draft, seeds, group))
    return [Round(image=image, plan=plan) for image, plan in zip(images, plans, strict=True)]


def make_critiques(
    policy: Policy,
    images: Sequence[object],
    prompts: Sequence[Prompt],
    settings: LoopSettings,
    seed: int,
    *,
    group: int = 1,
) -> list[Critique]:
    """`group` critiques an image, peers side by side. images: float tensors [3, H, W]."""
    contexts: list[Context] = []
    for image, prompt in zip(images, prompts, strict=True):
        contexts += [(look(image), *settings.protocol.reflect_pieces(prompt))] * group
    texts = policy.write(contexts, settings.critique, row_seeds(seed, 2, len(contexts)))
    return [settings.protocol.read_critique(text) for text in texts]


def make_refinements(
    policy: Policy,
    critiques: Sequence[Critique],
    images: Sequence[object],
    prompts: Sequence[Prompt],
    settings: LoopSettings,
    drawings: Sequence[Drawing],
    seed: int,
    *,
    group: int = 1,
) -> list[ImageSegment | None]:
    """One refinement a critique; None where the critique stops or is malformed. One image and prompt a critique."""
    pieces = {id(image): edit(image) for image in images}
    rows = [i for i, critique in enumerate(critiques) if critique.instruction]
    contexts = [
        (
            pieces[id(images[i])],
            *settings.protocol.refine_pieces(critiques[i], prompts[i], show_prompt=settings.show_prompt),
        )
        for i in rows
    ]
    seeds = row_seeds(seed, 3, len(critiques))
    noise = _noise_seeds(settings.refine, seeds, group) or seeds
    drawn = policy.draw(contexts, [drawings[i] for i in rows], [seeds[i] for i in rows], [noise[i] for i in rows])
    out: list[ImageSegment | None] = [None] * len(critiques)
    for i, image in zip(rows, drawn, strict=True):
        out[i] = image
    return out


def _noise_seeds(plan: DrawingPlan, seeds: Sequence[int], group: int) -> list[int] | None:
    if not plan.shared_noise:
        return None
    return [seeds[i - i % group] for i in range(len(seeds))]


def run_loop(
    policy: Policy,
    prompts: Sequence[Prompt],
    settings: LoopSettings,
    *,
    rounds: int,
    seed: int,
    drafts: Sequence[Round] | None = None,
) -> list[Trajectory]:
    """Whole trajectories, one a prompt, without stochastic steps: draft, then up to `rounds` rounds with early stop."""
    if drafts is None:
        drafts = make_drafts(policy, prompts, settings, [settings.draft.drawing] * len(prompts), seed)
    history = [[draft] for draft in drafts]
    last: list[Critique | None] = [None] * len(prompts)
    active = list(range(len(prompts)))
    for number in range(rounds):
        if not active:
            break
        images = [history[i][-1].image.image for i in active]
        asked = [prompts[i] for i in active]
        critiques = make_critiques(policy, images, asked, settings, seed + 101 * (number + 1))
        drawings = [settings.refine.drawing] * len(active)
        drawn = make_refinements(policy, critiques, images, asked, settings, drawings, seed + 101 * (number + 1))
        still = []
        for i, critique, image in zip(active, critiques, drawn, strict=True):
            if image is None:
                last[i] = critique
            else:
                history[i].append(Round(image=image, critique=critique))
                still.append(i)
        active = still
    return [
        Trajectory(prompt=prompt, rounds=tuple(rows), last_critique=critique)
        for prompt, rows, critique in zip(prompts, history, last, strict=True)
    ]
