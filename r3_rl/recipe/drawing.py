"""Sections `rollout.draft` and `rollout.refine`: how the policy draws."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from r3_rl.recipe.base import Problem, Section, Share, section


class GuidanceSection(Section):
    """Classifier-free guidance; scale 1 is none. Rollout and loss use the same guidance."""

    text: float = Field(1.0, ge=1, le=100, description="Scale against the context without its text.")
    image: float = Field(1.0, ge=1, le=100, description="Scale against the context without its image (refinements).")
    interval: tuple[float, float] = Field(
        (0.4, 1.0), strict=False, description="[low, high]: guidance acts while low < t <= high; t = 1 is noise."
    )
    renorm: Literal["global", "channel", "text_channel"] = Field(
        "global",
        description="What keeps its norm after guidance: the whole image, each token, or each token of the text part.",
    )
    renorm_min: Share = Field(0.0, description="The rescaling factor is clamped to [renorm_min, 1].")

    def problems(self) -> Iterator[Problem]:
        if self.image > 1 and self.text == 1:
            yield Problem("image", "does nothing while guidance is off; set text above 1")
        low, high = self.interval
        if not 0 <= low < high <= 1:
            yield Problem(
                "interval", f"[{low}, {high}] is no interval within [0, 1]; write [low, high] with low < high"
            )


class DrawingSection(Section):
    """How the policy draws: the flow from noise to data, made stochastic at the steps that are trained."""

    num_steps: int = Field(8, ge=1, le=1000, description="Denoising steps, each one evaluation of the model.")
    timestep_shift: float = Field(
        1.0, ge=0.01, le=100, description="s in t' = s t / (1 + (s - 1) t); above 1 spends more steps in noise."
    )
    sde: Literal["r3_monotonic", "r3_constant", "flow_grpo", "dance", "cps", "matching"] = Field(
        "r3_monotonic",
        description="Convention of the stochastic step; `matching`: no step is stochastic, and an image is scored by "
        "its flow-matching loss at the chosen steps' noise levels instead.",
    )
    eta: float = Field(
        0.7,
        ge=0.01,
        le=10,
        description="Noise level of the stochastic step; with less, float32 cannot tell its log-prob.",
    )
    window: Literal["random", "first", "sliding", "all"] = Field(
        "random",
        description="Which steps are stochastic and trained; the others follow the ODE. `all` takes every step.",
    )
    num_sde_steps: int = Field(
        2, ge=1, le=1000, description="How many steps are stochastic, or scored (not used by `all`)."
    )
    window_size: int | None = Field(
        None, ge=1, description="`random` draws among the first so many steps; null draws among all of them."
    )
    guidance: GuidanceSection = section("Classifier-free guidance.")
    shared_noise: bool = Field(False, description="Peers start from the same noise.")
    matching_noise: Literal["own", "shared"] = Field(
        "own",
        description="Noise at which `matching` scores an image: `own` is what it was drawn from, `shared` is drawn "
        "anew for all peers, so that nothing but the images tells their scores apart.",
    )

    @property
    def num_possible(self) -> int:
        """Steps that can be stochastic: the first so many. The last step of `cps` carries no noise."""
        return self.num_steps - (self.sde == "cps")

    def problems(self) -> Iterator[Problem]:
        yield from self._noise_problems()
        possible = self.num_possible
        steps = f"the {possible} steps " + (
            "before the last, which has no noise" if self.sde == "cps" else "of num_steps"
        )
        steps += f"; use at most {possible}"
        if self.window != "all" and self.num_sde_steps > possible > 0:
            yield Problem("num_sde_steps", f"{self.num_sde_steps} is more than {steps}")
        if self.window_size is not None and self.window_size > possible > 0:
            yield Problem("window_size", f"{self.window_size} is more than {steps}")
        if self.window_size is not None and self.window != "random":
            yield Problem("window_size", f"window '{self.window}' does not read it; use window 'random' or drop it")
        elif self.window_size is not None and self.num_sde_steps > self.window_size:
            yield Problem("num_sde_steps", f"{self.num_sde_steps} does not fit into window_size {self.window_size}")
        low, high = self.guidance.interval
        if self.guidance.text > 1 and low < high and not any(low < time <= high for time in self.times()):
            times = [f"{time:.2f}" for time in self.times()]
            shown = ", ".join(times if len(times) < 5 else [*times[:3], "...", times[-1]])
            yield Problem(
                "guidance.interval", f"none of the steps lies in it (t = {shown}); widen it or set guidance.text to 1"
            )

    def _noise_problems(self) -> Iterator[Problem]:
        if self.sde == "matching" and self.shared_noise:
            yield Problem("shared_noise", "with sde 'matching' only their first noise tells peers apart; drop one")
        if self.sde != "matching" and self.matching_noise != "own":
            yield Problem("matching_noise", f"sde '{self.sde}' does not read it; use sde 'matching' or drop it")
        if self.sde == "cps" and self.eta > 1:
            yield Problem("eta", f"must be at most 1 with sde 'cps', not {self.eta:g}: 1 replaces all of the noise")
        if self.num_possible < 1:
            yield Problem("num_steps", "the last step of sde 'cps' carries no noise; use 2 steps or more")

    def times(self) -> list[float]:
        """t at the start of each step, from 1 down (the equation of `flow.schedule.shifted_schedule`)."""
        even = [1 - step / self.num_steps for step in range(self.num_steps)]
        return [self.timestep_shift * u / (1 + (self.timestep_shift - 1) * u) for u in even]


class DraftSection(DrawingSection):
    """Round 0."""

    size: tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]] = Field(
        (36, 36), strict=False, description="[height, width] in pixels; refinements keep the size of their draft."
    )


class RefineSection(DrawingSection):
    """Rounds from 1 on."""

    context: Literal["instruction", "instruction+prompt"] = Field(
        "instruction", description="What the policy reads beside the image that it refines."
    )
