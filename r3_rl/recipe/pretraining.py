"""Section `pretrain`: supervised pretraining of the small model (flow matching and next-token prediction)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from r3_rl import registered
from r3_rl.recipe.base import Problem, Section, Share, section
from r3_rl.recipe.plateau import PLATEAU_GAIN, PLATEAU_STEPS, RESTART_RATE

MOST = 10**6
"""Of anything that is counted here: more is a slip of the keyboard, and would end in a lack of memory."""


class MixSection(Section):
    """Examples of each task in a step."""

    text_to_image: int = Field(96, ge=0, le=MOST, description="Prompt -> plan -> image.")
    edit: int = Field(64, ge=0, le=MOST, description="Image and instruction -> image.")
    critique: int = Field(96, ge=0, le=MOST, description="Image and prompt -> listing and instruction.")
    question: int = Field(32, ge=0, le=MOST, description="Image and question -> listing and answer.")
    plan: int = Field(32, ge=0, le=MOST, description="Prompt -> plan, without the image: cheap words.")

    def problems(self) -> Iterator[Problem]:
        if not any((self.text_to_image, self.edit, self.critique, self.question, self.plan)):
            yield Problem("text_to_image", "a step without any sample learns nothing; set one task above 0")


OF_THE_WORLD = (
    "plan_noise", "plan_errors", "image_noise", "edit_noise", "critique_noise", "prompt_weights", "draw_weights",
)  # fmt: skip
"""Keys that say how a world makes its examples. Not every world knows every one."""


Weights = dict[str, Annotated[float, Field(ge=0)]]
"""By kind of prompt."""


class LaterLegSection(Section):
    """What a later leg changes, from where the one before ended and with fresh optimisers; null keeps what that had."""

    steps: int = Field(600, ge=1, le=MOST, description="Updates of the leg.")
    batch: MixSection | None = Field(None, description="Examples of each task in a step.")
    decay_fraction: float | None = Field(None, ge=0, le=1, description="Last share of the leg, in which rates fall.")
    muon_lr: float | None = Field(None, ge=0, description="Muon's learning rate.")
    adam_lr: float | None = Field(None, gt=0, description="AdamW's learning rate.")
    plan_noise: Share | None = Field(None, description="Share of plans that contradict their prompt.")
    plan_errors: int | None = Field(
        None, ge=1, le=6, description="Most edits that a wrong plan is away from a right one."
    )
    image_noise: Share | None = Field(None, description="Share of images that depart from their plan.")
    edit_noise: Share | None = Field(None, description="Share of edits whose result departs from the instruction.")
    critique_noise: Share | None = Field(None, description="Share of critiques of wrong images that help nothing.")


def _list_sizes(schema: dict[str, Any]) -> None:
    backbones = [registered.find(registered.BACKBONES, name) for name in registered.names(registered.BACKBONES)]
    sizes = [backbone.size_section.model_json_schema() for backbone in backbones]
    schema.update(sizes[0] if len(sizes) == 1 else {"anyOf": sizes}, description=schema["description"])


class PretrainSection(Section):
    """Supervised pretraining in the embedded world. Seed, threads and output folder are those of `training`."""

    steps: int = Field(1500, ge=1, le=MOST, description="Updates of the weights.")
    max_hours: float | None = Field(
        None, gt=0, description="Hours after which pretraining ends (the rates fall in time); null is no limit."
    )
    start: str | None = Field(None, description="Folder of weights to go on from; null starts from random ones.")
    tower_steps: int = Field(
        0,
        ge=0,
        le=MOST,
        description="Updates of the understanding tower alone, before all others: it learns to tell "
        "what is in each square of an image, as released models begin with a tower that can see.",
    )
    tower_images: int = Field(64, ge=1, le=MOST, description="Images of such an update.")
    sketch_steps: int = Field(
        0,
        ge=0,
        le=MOST,
        description="Updates after the tower's, before images are drawn: from a plan, or an edit and the image before "
        "it, and noise alone the model learns what each square of the image is to hold. Without them a painter finds "
        "out late.",
    )
    sketch_plans: int = Field(64, ge=0, le=MOST, description="Plans of such an update.")
    sketch_edits: int = Field(0, ge=0, le=MOST, description="Edits of such an update.")
    warmup_steps: int = Field(40, ge=1, le=MOST, description="Steps of linear warm-up.")
    decay_fraction: float = Field(
        0.4, ge=0, le=1, description="Last share of the run, in which the rates fall to 0; 0 never."
    )
    apart_fraction: Share = Field(
        0.0, description="First share of the steps, in which drawing and understanding take turns."
    )
    ramp_fraction: Share = Field(0.0, description="Following share, in which steps of both become the rule.")
    plateau_steps: int | None = PLATEAU_STEPS
    plateau_gain: float = PLATEAU_GAIN
    restart_rate: bool = RESTART_RATE
    batch: MixSection = section("Examples of each task in a step.")
    micro_batch: int = Field(
        32, ge=1, le=MOST, description="Examples of one pass; small ones stay in the processor's cache."
    )
    muon_lr: float = Field(0.02, ge=0, le=10, description="Muon's learning rate, for the matrices of the layers.")
    adam_lr: float = Field(2e-3, gt=0, le=1, description="AdamW's learning rate, for everything else.")
    ema: float = Field(0.998, ge=0, lt=1, description="Decay of the moving average of the weights, which is saved.")
    text_weight: float = Field(1.0, ge=0, description="Weight of the next-token loss beside the flow loss.")
    times_per_image: int = Field(2, ge=1, le=MOST, description="Noise levels at which each image is learned in a step.")
    time_mean: float = Field(1.0, description="m in t = sigmoid(m + N(0, 1)), the noise level that is trained.")
    soften_below: Share = Field(0.35, description="s: the flow loss at t < s weighs (t / s)^2; 0 leaves it as it is.")
    context_dropout: Share = Field(0.08, description="Chance to draw without context, which guidance needs.")
    plan_noise: Share = Field(
        0.0, description="Share of plans (and images with them) that contradict their prompt: entropy, not headroom."
    )
    plan_errors: int = Field(
        4, ge=1, le=6, description="Most edits that a wrong plan is away from a right one; each number is as likely."
    )
    image_noise: Share = Field(0.0, description="Share of images that depart from their plan.")
    edit_noise: Share = Field(0.0, description="Share of edits whose result departs from the instruction.")
    critique_noise: Share = Field(
        0.0, description="Share of critiques of wrong images that stop, or ask for what helps nothing."
    )
    prompt_weights: Weights = Field(
        {}, description="Weights of kinds of prompts in `text_to_image` and `critique`, by tag; kinds left out weigh 1."
    )
    draw_weights: Weights = Field(
        {},
        description="Further weights in `text_to_image` and `plan`, by tag; kinds left out weigh 1. Edits, "
        "critiques and questions show scenes of all kinds whatever is set here.",
    )
    snapshots: tuple[int, ...] = Field(
        (), strict=False, description="Steps of the run after which the moving average is saved as a model of its own."
    )
    later: tuple[LaterLegSection, ...] = Field((), strict=False, description="Further legs with other examples.")
    model: dict[str, Any] = Field(
        {}, description="Sizes of the model, by the keys of its backbone.", json_schema_extra=_list_sizes
    )

    def legs(self) -> list[PretrainSection]:
        """The settings of each leg; the limit of time is that of the first."""
        legs = [self]
        for later in self.later:
            changes = {name: value for name, value in later if value is not None}
            legs.append(legs[-1].model_copy(update={**changes, "apart_fraction": 0.0, "ramp_fraction": 0.0}))
        return legs

    def problems(self) -> Iterator[Problem]:
        total = self.steps + sum(leg.steps for leg in self.later)
        for step in self.snapshots:
            if not 1 <= step <= total:
                yield Problem("snapshots", f"{step} is not one of the run's {total} steps")
        if self.sketch_steps and not self.sketch_plans + self.sketch_edits:
            yield Problem("sketch_plans", "an update of neither plans nor edits learns nothing; set one above 0")
        if self.apart_fraction + self.ramp_fraction > 1:
            yield Problem("ramp_fraction", "apart_fraction and ramp_fraction are shares of one run; their sum passes 1")
