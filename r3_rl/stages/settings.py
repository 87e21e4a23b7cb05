"""How the loop writes and draws at each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from r3_rl.flow.schedule import choose_steps
from r3_rl.policy.base import Drawing, Sampling
from r3_rl.recipe.base import default
from r3_rl.recipe.drawing import DrawingSection
from r3_rl.recipe.sampling import RolloutSection
from r3_rl.stages.protocol import Protocol


@dataclass(frozen=True, kw_only=True)
class DrawingPlan:
    """How a stage draws, and which of its steps are stochastic in training."""

    drawing: Drawing
    """Everything but the stochastic steps."""
    window: str = default(DrawingSection, "window")
    num_sde_steps: int = default(DrawingSection, "num_sde_steps")
    window_size: int | None = default(DrawingSection, "window_size")
    shared_noise: bool = default(DrawingSection, "shared_noise")
    """Peers start from the same noise."""
    matching_noise: str = default(DrawingSection, "matching_noise")
    """`own`: `matching` scores each image at the noise it was drawn from; `shared`: peers at one noise."""

    @property
    def num_possible(self) -> int:
        """Steps that can be stochastic: the first so many."""
        return self.drawing.num_steps - (self.drawing.convention == "cps")

    def rows(self, groups: Sequence[int], *, seed: int, progress: float) -> list[Drawing]:
        """Drawings of a training step, one a row: peers (rows of one number) share their stochastic steps and the
        noise of `matching`, so only their samples differ. A group's steps follow from its number, whichever other
        groups there are."""
        rng = np.random.default_rng(seed)
        window = "first" if self.window == "random" and self.window_size is not None else self.window
        drawings = [
            replace(
                self.drawing,
                sde_steps=choose_steps(
                    window,
                    self.num_possible,
                    self.num_sde_steps,
                    window_size=self.window_size,
                    progress=progress,
                    rng=rng,
                ),
                matching_seed=int(rng.integers(2**62)) if self.matching_noise == "shared" else None,
            )
            for _ in range(max(groups, default=-1) + 1)
        ]
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
    history: bool = default(RolloutSection, "history")
    """Later rounds read the earlier images and critiques of their trajectory."""
    show_prompt: bool = False
    """Refinements see the prompt beside the instruction."""
    refines: Literal["edit", "regenerate"] = "edit"
    """How the backbone refines (`BackboneSpec.refines`); an engine takes it from its policy."""

    def for_evaluation(self, temperature: float) -> LoopSettings:
        """The same loop without exploration: ODE drawing, texts at `temperature` (0: the likeliest words)."""
        return replace(
            self,
            plan=replace(self.plan, temperature=temperature, top_p=1.0) if self.plan else None,
            critique=replace(self.critique, temperature=temperature, top_p=1.0),
        )
