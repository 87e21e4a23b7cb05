"""Sections `model`, `data` and `rollout`: what is trained, on which prompts, and how it writes and draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from r3_rl import registered
from r3_rl.recipe.base import Problem, Section, Share, section
from r3_rl.recipe.branching import BranchSection
from r3_rl.recipe.drawing import DraftSection, DrawingSection, RefineSection

EMBEDDED = "embedded"
RECOGNISED = ("auto", EMBEDDED)
"""Kinds of models that leave it to the folder which backbone they are."""
COMPACT = "compact"
"""The protocol of our worlds' own words; backbones bring others."""


def _model_kinds() -> tuple[str, ...]:
    return (*RECOGNISED, *registered.names(registered.BACKBONES))


def _protocols() -> tuple[str, ...]:
    return (COMPACT, *registered.names(registered.BACKBONES))


def _list_model_kinds(schema: dict[str, Any]) -> None:
    schema["enum"] = list(_model_kinds())


def _list_protocols(schema: dict[str, Any]) -> None:
    schema["enum"] = list(_protocols())


def _one_of(known: tuple[str, ...], name: str) -> str:
    if name not in known:
        raise PydanticCustomError("unknown_name", "", {"known": known})
    return name


class ModelSection(Section):
    """The policy."""

    kind: str = Field(
        EMBEDDED,
        description="`embedded`: the small model that ships with a world, or one pretrained like it; `auto`: what the "
        "folder at `path` holds; every other kind is a backbone, whose weights the folder has to hold.",
        json_schema_extra=_list_model_kinds,
    )
    path: str | None = Field(
        None,
        description="Folder of weights, or their name on the hub, such as `OWNER/MODEL`, to be fetched into its cache. "
        "Null takes the shipped ones of the embedded model; all other kinds need one.",
    )
    base: str | None = Field(
        None,
        min_length=1,
        description="Which of the models that ship with the world, by its name; null takes the first. Only for kind "
        "`embedded` without a path.",
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

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        return _one_of(_model_kinds(), kind)

    def problems(self) -> Iterator[Problem]:
        if self.revision is not None and (self.path is None or Path(self.path).is_absolute()):
            yield Problem("revision", "only a name on the hub has revisions; drop it")
        if self.base is not None and (self.kind != EMBEDDED or self.path is not None):
            yield Problem("base", f"names a model that ships with a world: only for kind '{EMBEDDED}' without a path")
        if self.random_init and self.kind == EMBEDDED and self.path is not None:
            yield Problem("random_init", "random weights and a path contradict each other; drop one of them")


FILE_KINDS = ("geneval", "tiif", "jsonl", "text")
"""Kinds of data that are read from a file; every other kind is the name of a world."""


def _data_kinds() -> tuple[str, ...]:
    return (*registered.names(registered.WORLDS), *FILE_KINDS)


def _list_kinds(schema: dict[str, Any]) -> None:
    schema["enum"] = list(_data_kinds())


class DataSection(Section):
    """The prompts."""

    kind: str = Field(
        registered.default(registered.WORLDS),
        description="`geneval`, `tiif`, `jsonl` and `text` (a prompt a line) read the file at `path`; every other kind "
        "is a world, which makes its own prompts without end.",
        json_schema_extra=_list_kinds,
    )
    path: str | None = Field(
        None, description="Prompt file: JSON lines with at least a `prompt`, or a text. Not used by worlds."
    )
    prompt_key: str | None = Field(
        None, description="Column that holds the prompt; for `tiif` `short_description` or `long_description`."
    )
    questions: str | None = Field(
        None,
        min_length=1,
        description="Questions about images for `algorithm.answer_share`: JSON lines with `image`, `question` and "
        "`answer`, or a folder of a VQA challenge. Null: a world asks its own.",
    )
    tags: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = Field(
        None, description="Keep only prompts with these tags; null keeps all."
    )
    exclude_tags: tuple[str, ...] = Field((), strict=False, description="Leave out prompts with these tags.")
    seed: int = Field(0, ge=0, description="Order of the prompts.")

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        return _one_of(_data_kinds(), kind)

    @property
    def world(self) -> str | None:
        """The name of the world that makes the prompts; None if a file holds them."""
        return None if self.kind in FILE_KINDS else self.kind

    def problems(self) -> Iterator[Problem]:
        if self.world and self.path is not None:
            yield Problem("path", f"kind '{self.kind}' makes its own prompts and reads no file; drop the path")
        if not self.world and self.path is None:
            yield Problem("path", f"kind '{self.kind}' needs the path of a prompt file")
        keys = ("short_description", "long_description")
        if self.kind == "tiif" and self.prompt_key not in (None, *keys):
            yield Problem("prompt_key", f"'{self.prompt_key}' is no column of TIIF; use '{keys[0]}' or '{keys[1]}'")
        for key in ("prompt_key", "tags", "exclude_tags") if self.kind == "text" else ():
            if getattr(self, key):
                yield Problem(key, "a text has prompts and no columns; drop it, or use kind 'jsonl'")
        for tag in sorted(set(self.tags or ()) & set(self.exclude_tags)):
            yield Problem("exclude_tags", f"'{tag}' is both kept and left out")


def world_named_in(recipe: Mapping[str, Any]) -> str | None:
    """Return the name of the world in a recipe that is read without being checked; None if it does not name one.

    >>> world_named_in({"data": {"kind": "jsonl"}}), world_named_in({"data": {"kind": "somewhere"}})
    (None, 'somewhere')
    """
    data = recipe.get("data")
    kind = data.get("kind") if isinstance(data, Mapping) else None
    return kind if isinstance(kind, str) and kind not in FILE_KINDS else None


class WritingSection(Section):
    """How the policy writes."""

    max_new_tokens: int = Field(
        48, ge=1, le=32768, description="Tokens after which a text is cut; a cut text is malformed."
    )
    temperature: float = Field(1.0, ge=0.05, le=5, description="Divides the logits before sampling.")
    top_p: float = Field(
        1.0, ge=0.05, le=1, description="Smallest set of tokens with at least this mass stays in play."
    )


class PlanSection(WritingSection):
    """The plan written before the draft."""

    enabled: bool = Field(True, description="False draws straight from the prompt.")


class RolloutSection(Section):
    """The loop: plan, draft, critique, refinement."""

    protocol: str = Field(
        COMPACT,
        description="Templates: `compact` for the embedded model's words, or the name of a backbone for those that it "
        "brings.",
        json_schema_extra=_list_protocols,
    )
    num_prompts: int = Field(8, ge=1, le=65536, description="Prompts in a step, over all processes.")
    nodes_per_prompt: int = Field(
        1,
        ge=1,
        le=1024,
        description="Images (or questions) that a step of critiques, refinements or answers starts from, for each "
        "prompt of a step; with schedules `full` and `episode` always 1. A critic learns from many images with a few "
        "critiques of each, and hardly from a few images with many.",
    )
    branch: BranchSection = section("Children of every node: what is compared with what.")
    rounds: int = Field(
        1, ge=1, le=16, description="Refinements of a trajectory at most (schedule `full` and evaluation)."
    )
    history: bool = Field(
        False,
        description="From the second round on, critiques and refinements also read the earlier images and critiques of "
        "their trajectory. Contexts grow by an image and a critique a round.",
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

    @field_validator("protocol")
    @classmethod
    def _known(cls, protocol: str) -> str:
        return _one_of(_protocols(), protocol)

    def problems(self) -> Iterator[Problem]:
        refined = self.nodes_per_prompt * self.branch.rollouts("refine")
        rollouts = self.num_prompts * max(self.branch.rollouts("reason"), refined)
        if self.num_parts > rollouts:
            yield Problem(
                "num_parts",
                f"a step's {rollouts} rollouts do not make {self.num_parts} batches; use {rollouts} or fewer",
            )


__all__ = ["DataSection", "DrawingSection", "ModelSection", "RolloutSection", "Share", "WritingSection"]
