"""Sections `model`, `data` and `rollout`: what is trained, on which prompts, and how it writes and draws."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from r3_rl.recipe.base import Problem, Section, section

Share = Annotated[float, Field(ge=0, le=1)]


class ModelSection(Section):
    """The policy."""

    kind: Literal["embedded", "bagel"] = Field(
        "embedded",
        description="`embedded`: the small model that ships with the package; `bagel`: BAGEL's released layout.",
    )
    path: str | None = Field(
        None,
        description="Folder of weights, or their name on the hub, such as `ByteDance-Seed/BAGEL-7B-MoT`, to be fetched "
        "into its cache. Null takes the shipped ones of the embedded model; `bagel` needs one.",
    )
    revision: str | None = Field(
        None, min_length=1, description="Branch, tag or commit of a name on the hub; null takes its main branch."
    )
    random_init: bool = Field(False, description="Start from random weights (pretraining, tests).")
    dtype: Literal["float32", "bfloat16", "auto"] = Field(
        "float32",
        description="Precision of the frozen weights and of the computation; trained adapters stay float32. "
        "`auto`: bfloat16 where the machine has units for it, else float32.",
    )
    attention: Literal["auto", "matmul", "sdpa"] = Field(
        "auto", description="`auto`: plain matrix products on a CPU (faster at short lengths), sdpa on a GPU."
    )

    def problems(self) -> Iterator[Problem]:
        if self.kind == "bagel" and self.path is None:
            yield Problem("path", "kind 'bagel' ships no weights; give the folder of a downloaded checkpoint")
        if self.revision is not None and (self.path is None or Path(self.path).is_absolute()):
            yield Problem("revision", "only a name on the hub has revisions; drop it")
        if self.random_init and self.kind == "embedded" and self.path is not None:
            yield Problem("random_init", "random weights and a path contradict each other; drop one of them")


class DataSection(Section):
    """The prompts."""

    kind: Literal["shapes", "geneval", "tiif", "jsonl"] = Field(
        "shapes", description="`shapes`: endless prompts of the embedded world; the others read the file at `path`."
    )
    path: str | None = Field(
        None, description="Prompt file: JSON lines with at least a `prompt`. Not used by `shapes`."
    )
    prompt_key: str | None = Field(
        None, description="Column that holds the prompt; for `tiif` `short_description` or `long_description`."
    )
    tags: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = Field(
        None, description="Keep only prompts with these tags; null keeps all."
    )
    exclude_tags: tuple[str, ...] = Field((), strict=False, description="Leave out prompts with these tags.")
    seed: int = Field(0, ge=0, description="Order of the prompts.")

    def problems(self) -> Iterator[Problem]:
        if self.kind == "shapes" and self.path is not None:
            yield Problem("path", "kind 'shapes' makes its own prompts and reads no file; drop the path")
        if self.kind != "shapes" and self.path is None:
            yield Problem("path", f"kind '{self.kind}' needs the path of a prompt file")
        keys = ("short_description", "long_description")
        if self.kind == "tiif" and self.prompt_key not in (None, *keys):
            yield Problem("prompt_key", f"'{self.prompt_key}' is no column of TIIF; use '{keys[0]}' or '{keys[1]}'")
        for tag in sorted(set(self.tags or ()) & set(self.exclude_tags)):
            yield Problem("exclude_tags", f"'{tag}' is both kept and left out")


class WritingSection(Section):
    """How the policy writes."""

    max_new_tokens: int = Field(48, ge=1, description="Tokens after which a text is cut; a cut text is malformed.")
    temperature: float = Field(1.0, gt=0, le=5, description="Divides the logits before sampling.")
    top_p: float = Field(1.0, gt=0, le=1, description="Smallest set of tokens with at least this mass stays in play.")


class PlanSection(WritingSection):
    """The plan written before the draft."""

    enabled: bool = Field(True, description="False draws straight from the prompt.")


class GuidanceSection(Section):
    """Classifier-free guidance; scale 1 is none. Rollout and loss use the same guidance."""

    text: float = Field(1.0, ge=1, description="Scale against the context without its text.")
    image: float = Field(1.0, ge=1, description="Scale against the context without its image (refinements).")
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

    num_steps: int = Field(8, ge=1, description="Denoising steps, each one evaluation of the model.")
    timestep_shift: float = Field(
        1.0, gt=0, description="s in t' = s t / (1 + (s - 1) t); above 1 spends more steps in noise."
    )
    sde: Literal["r3_monotonic", "r3_constant", "flow_grpo", "dance", "cps", "matching"] = Field(
        "r3_monotonic",
        description="Convention of the stochastic step; `matching`: no step is stochastic, and an image is scored by "
        "its flow-matching loss at the chosen steps' noise levels instead.",
    )
    eta: float = Field(0.7, gt=0, description="Noise level of the stochastic step.")
    window: Literal["random", "first", "sliding", "all"] = Field(
        "random",
        description="Which steps are stochastic and trained; the others follow the ODE. `all` takes every step.",
    )
    num_sde_steps: int = Field(2, ge=1, description="How many steps are stochastic, or scored (not used by `all`).")
    window_size: int | None = Field(
        None, ge=1, description="`random` draws among the first so many steps; null draws among all of them."
    )
    guidance: GuidanceSection = section("Classifier-free guidance.")
    shared_noise: bool = Field(False, description="Peers start from the same noise.")

    def problems(self) -> Iterator[Problem]:
        steps = f"the {self.num_steps} steps of num_steps"
        if self.window != "all" and self.num_sde_steps > self.num_steps:
            yield Problem("num_sde_steps", f"{self.num_sde_steps} is more than {steps}")
        if self.sde == "matching" and self.shared_noise:
            yield Problem("shared_noise", "with sde 'matching' only their first noise tells peers apart; drop one")
        if self.window_size is not None and self.window_size > self.num_steps:
            yield Problem("window_size", f"{self.window_size} is more than {steps}")
        if self.window_size is not None and self.window != "random":
            yield Problem("window_size", f"window '{self.window}' does not read it; use window 'random' or drop it")
        elif self.window_size is not None and self.num_sde_steps > self.window_size:
            yield Problem("num_sde_steps", f"{self.num_sde_steps} does not fit into window_size {self.window_size}")


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


class RolloutSection(Section):
    """The loop: plan, draft, critique, refinement."""

    protocol: Literal["compact", "bagel"] = Field(
        "compact", description="Templates: `compact` for the embedded model's words, `bagel` for BAGEL's language."
    )
    num_prompts: int = Field(8, ge=1, description="Prompts in a step, over all processes.")
    num_generations: int = Field(8, ge=1, description="Peers in a group: drafts of a prompt, refinements of a draft.")
    images_per_plan: int = Field(
        1,
        ge=1,
        description="Drafts drawn from each plan; divides num_generations. Above 1, a draft is compared with the other "
        "drafts of its plan, and a plan by the mean of its drafts with the other plans of the prompt.",
    )
    images_per_critique: int = Field(
        1,
        ge=1,
        description="Refinements drawn by each critique; divides num_generations. Above 1, a refinement is compared "
        "with the others by its critique, and a critique by the mean of theirs.",
    )
    rounds: int = Field(
        1, ge=1, le=16, description="Refinements of a trajectory at most (schedule `full` and evaluation)."
    )
    num_parts: int = Field(
        1,
        ge=1,
        description="Batches in which the images of a step are drawn. Scorers work on one while the next is drawn, "
        "which hides slow ones; smaller batches draw somewhat slower.",
    )
    plan: PlanSection = section("The text before the draft.")
    draft: DraftSection = section("Round 0.")
    critique: WritingSection = section("The text about an image.")
    refine: RefineSection = section("Rounds from 1 on.")

    @field_validator("num_generations")
    @classmethod
    def _has_peers(cls, number: int) -> int:
        if number == 1:
            raise PydanticCustomError("group_of_one", "a group of one has no peers to compare with; use 2 or more")
        return number

    def problems(self) -> Iterator[Problem]:
        rollouts = self.num_prompts * self.num_generations
        if self.num_parts > rollouts:
            yield Problem("num_parts", f"{rollouts} rollouts do not make {self.num_parts} parts")
        for key, number in (
            ("images_per_plan", self.images_per_plan),
            ("images_per_critique", self.images_per_critique),
        ):
            if self.num_generations % number:
                yield Problem(key, f"{self.num_generations} num_generations do not divide into {number}")
        if self.images_per_critique == self.num_generations:
            yield Problem("images_per_critique", "a critique alone has no peers to compare with; use half or fewer")
        if self.images_per_plan > 1 and not self.plan.enabled:
            yield Problem("images_per_plan", "without plans there is nothing to draw several images from; drop it")
