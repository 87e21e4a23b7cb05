"""The loop: plan and draft, then critique and refinement until the critique stops.

Every function takes rows and gives rows in the same order; rows of a group begin with equal pieces, which a backbone
encodes once. A stopped trajectory leaves the batch: it costs nothing afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from torch import Tensor

from r3_rl.flow.windows import choose_steps
from r3_rl.policy.base import Drawing, Policy, Sampling
from r3_rl.rollout.protocol import Protocol, edit, look
from r3_rl.types import Context, Critique, ImagePiece, ImageSegment, Prompt, Round, TextPiece, TextSegment, Trajectory


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

    @property
    def num_possible(self) -> int:
        """Steps that can be stochastic: the first so many."""
        return self.drawing.num_steps - (self.drawing.convention == "cps")

    def rows(self, groups: Sequence[int], *, seed: int, progress: float, first_group: int = 0) -> list[Drawing]:
        """Drawings of a training step, one a row: peers (rows of one number) share their stochastic steps, so only
        their samples differ. first_group: groups that the processes before this one have."""
        rng = np.random.default_rng(seed)
        window = "first" if self.window == "random" and self.window_size is not None else self.window
        drawings: dict[int, Drawing] = {}
        for group in (*range(-first_group, 0), *groups):
            if group not in drawings:
                steps = choose_steps(
                    window,
                    self.num_possible,
                    self.num_sde_steps,
                    window_size=self.window_size,
                    progress=progress,
                    rng=rng,
                )
                drawings[group] = replace(self.drawing, sde_steps=steps)
        return [drawings[group] for group in groups]


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
        return replace(
            self,
            plan=replace(self.plan, temperature=temperature, top_p=1.0) if self.plan else None,
            critique=replace(self.critique, temperature=temperature, top_p=1.0),
        )


def row_seeds(seed: int, stage: int, count: int) -> list[int]:
    """Seeds of rows, far apart whatever the run's seed; `stage` keeps plan, draft, critique and refinement apart.

    A row's seed does not depend on how many rows follow it.

    >>> row_seeds(0, 1, 3)[:2] == row_seeds(0, 1, 2)
    True
    """
    return [int(x) >> 2 for x in np.random.SeedSequence((seed, stage)).generate_state(count, np.uint64)]


def _seeds_of(seed: int, stage: int, rows: Sequence[int]) -> list[int]:
    return _at(rows, row_seeds(seed, stage, max(rows, default=-1) + 1))


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The batches in which images are drawn: scorers may work on one while the next is drawn.

    >>> Parts(count=2).of([0, 0, 1, 1, 2, 2])
    [[0, 1, 2, 3], [4, 5]]
    >>> Parts(count=2, whole_groups=False).of([0, 0, 1, 1, 2, 2])
    [[0, 1, 2], [3, 4, 5]]
    """

    count: int = 1
    """At most so many."""
    whole_groups: bool = True
    """Peers are drawn in one batch."""

    def of(self, groups: Sequence[int]) -> list[list[int]]:
        """The places of rows, batch by batch; peers have one number in `groups`."""
        keys = groups if self.whole_groups else range(len(groups))
        order = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        parts: dict[int, list[int]] = {}
        for place, key in enumerate(keys):
            parts.setdefault(order[key] * self.count // len(order), []).append(place)
        return [parts[number] for number in sorted(parts)]


_ONE = Parts()
_T = TypeVar("_T")


def _at(rows: Sequence[int], values: Sequence[_T]) -> list[_T]:
    return [values[row] for row in rows]


def make_drafts(
    policy: Policy,
    prompts: Sequence[Prompt],
    settings: LoopSettings,
    drawings: Sequence[Drawing],
    seed: int,
    *,
    group: int = 1,
    per_plan: int = 1,
    first_row: int = 0,
    parts: Parts = _ONE,
    drawn: Callable[[Sequence[int], Sequence[Round]], None] | None = None,
) -> list[Round]:
    """Draw `group` drafts of each prompt, peers side by side, `per_plan` of them from each plan.

    Plans are written in one batch and drawn in `parts`.

    Args:
        policy: who writes and draws.
        prompts: [P].
        settings: templates and sampling.
        drawings: [P * group], one a row.
        seed: of the step.
        group: drafts of a prompt.
        per_plan: drafts of a plan; divides `group`. They share one plan segment, and differ in their noise.
        first_row: the first row's place among the rows of all processes, from which its seed follows.
        parts: the batches that are drawn.
        drawn: called with the rows of a part as soon as its images are there.
    """
    contexts: list[Context] = []
    for prompt in prompts:
        contexts += [settings.protocol.reason_context(prompt)] * group
    places = range(first_row, first_row + len(contexts))
    plans: list[TextSegment | None] = [None] * len(contexts)
    if settings.plan is not None:
        firsts = range(0, len(contexts), per_plan)
        written = policy.write(_at(firsts, contexts), settings.plan, _seeds_of(seed, 0, _at(firsts, places)))
        plans = [plan for plan in written for _ in range(per_plan)]
        pieces = [piece for p in written for piece in [TextPiece(text=p.text, token_ids=p.token_ids)] * per_plan]
        contexts = [(*c, piece) for c, piece in zip(contexts, pieces, strict=True)]
    seeds = _seeds_of(seed, 1, places)
    groups = [i // group for i in range(len(contexts))]
    noise = _noise_seeds(settings.draft, seeds, groups) or seeds
    out: list[Round] = []
    for rows in parts.of(groups):
        images = policy.draw(_at(rows, contexts), _at(rows, drawings), _at(rows, seeds), _at(rows, noise))
        out += [Round(image=image, plan=plans[i]) for i, image in zip(rows, images, strict=True)]
        if drawn is not None:
            drawn(rows, out[-len(rows) :])
    return out


def make_critiques(
    policy: Policy,
    images: Sequence[Tensor],
    prompts: Sequence[Prompt],
    settings: LoopSettings,
    seed: int,
    *,
    group: int = 1,
    rows: Sequence[int] | None = None,
) -> list[Critique]:
    """`group` critiques an image, peers side by side.

    Args:
        policy: who writes.
        images: float32 [3, H, W] in [0, 1].
        prompts: one an image.
        settings: templates and sampling.
        seed: of the step.
        group: critiques an image.
        rows: which row's seed each critique takes; by default its own place. Rows left from a larger batch give
            their places in it, so that a text does not depend on which others have stopped.
    """
    contexts: list[Context] = []
    for image, prompt in zip(images, prompts, strict=True):
        contexts += [(look(image), *settings.protocol.reflect_pieces(prompt))] * group
    texts = policy.write(contexts, settings.critique, _seeds_of(seed, 2, rows or range(len(contexts))))
    return [settings.protocol.read_critique(text) for text in texts]


def make_refinements(
    policy: Policy,
    critiques: Sequence[Critique],
    images: Sequence[Tensor],
    prompts: Sequence[Prompt],
    settings: LoopSettings,
    drawings: Sequence[Drawing],
    seed: int,
    *,
    groups: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
    parts: Parts = _ONE,
    drawn: Callable[[Sequence[int], Sequence[ImageSegment]], None] | None = None,
) -> list[ImageSegment | None]:
    """One refinement a critique; None where the critique stops or is malformed.

    Args:
        policy: who draws.
        critiques, images, prompts, drawings: one a row; equal images are encoded once, and so are equal instructions
            after them.
        settings: templates.
        seed: of the step.
        groups: peers have one number and may share their starting noise; by default every row stands alone.
        rows: as in `make_critiques`.
        parts: the batches that are drawn.
        drawn: is told the rows of a part that have an image, and their images, as soon as they are there.
    """
    pieces: list[ImagePiece] = []
    for i, image in enumerate(images):
        # rows of one image lie side by side: one piece for them, so that its digest is computed once
        pieces.append(pieces[-1] if i and image is images[i - 1] else edit(image))
    seeds = _seeds_of(seed, 3, rows or range(len(critiques)))
    peers = groups or range(len(critiques))
    noise = _noise_seeds(settings.refine, seeds, peers) or seeds
    out: list[ImageSegment | None] = [None] * len(critiques)
    for part in parts.of(peers):
        asked = [i for i in part if critiques[i].instruction]
        contexts = [
            (pieces[i], *settings.protocol.refine_pieces(critiques[i], prompts[i], show_prompt=settings.show_prompt))
            for i in asked
        ]
        made = policy.draw(contexts, _at(asked, drawings), _at(asked, seeds), _at(asked, noise))
        for i, image in zip(asked, made, strict=True):
            out[i] = image
        if drawn is not None and asked:
            drawn(asked, made)
    return out


def _noise_seeds(plan: DrawingPlan, seeds: Sequence[int], groups: Sequence[int]) -> list[int] | None:
    if not plan.shared_noise:
        return None
    first: dict[int, int] = {}
    return [first.setdefault(group, seed) for group, seed in zip(groups, seeds, strict=True)]


def round_seed(seed: int, number: int) -> int:
    """The seed of a round of a step, away from those of the next steps. Round 0 is the draft: it has the step's own."""
    return seed + 100_003 * number


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
        here = round_seed(seed, number + 1)
        critiques = make_critiques(policy, images, asked, settings, here, rows=active)
        drawings = [settings.refine.drawing] * len(active)
        drawn = make_refinements(policy, critiques, images, asked, settings, drawings, here, rows=active)
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
