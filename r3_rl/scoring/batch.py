"""What the panel is asked to score, and what of it a scorer gets to see."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r3_rl.pixels import to_uint8
from r3_rl.scoring.base import RunProgress, ScorerInfo
from r3_rl.types import STANDARD_ARGUMENTS, Prompt

Image = NDArray[np.uint8]
"""uint8 [H, W, 3]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreBatch:
    """Samples to score; every field that is given holds one entry for each prompt.

    >>> ScoreBatch(prompts=[Prompt(text="a dog")], texts=["<think>x</think> y"]).count
    1
    """

    prompts: Sequence[Prompt]
    images: Sequence[Image | None] | None = None
    """uint8 [H, W, 3]; None for texts alone, or for a sample without an image."""
    texts: Sequence[str] | None = None
    """The plan or critique that is judged."""
    token_ids: Sequence[Sequence[int]] | None = None
    """Ids of `texts`, for rewards that count tokens."""
    draft_images: Sequence[Image | None] | None = None
    """The image each of `images` was refined from."""
    critiques: Sequence[str | None] | None = None
    """The critique each of `images` came from."""
    groups: Sequence[Hashable] | None = None
    """Equal for peers; group-wise scorers and `normalize_then_sum` need it."""
    drawn: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """What was drawn and is not an image, by the keyword under which scorers take it."""

    def __post_init__(self) -> None:
        for name in ("images", "texts", "token_ids", "draft_images", "critiques", "groups", *self.drawn):
            values = self.drawn[name] if name in self.drawn else getattr(self, name)
            if values is not None and len(values) != self.count:
                raise ValueError(f"ScoreBatch.{name} has {len(values)} entries for {self.count} prompts")
        for name in ("images", "draft_images"):
            for image in getattr(self, name) or ():
                fits = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3
                if image is not None and not (fits and image.shape[2] == 3):
                    shape, kind = getattr(image, "shape", "no shape"), getattr(image, "dtype", type(image).__name__)
                    raise ValueError(
                        f"ScoreBatch.{name} takes uint8 arrays [H, W, 3], not {kind} {shape}; see to_uint8"
                    )

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.prompts)

    def columns(self) -> dict[str, list[Any]]:
        """Return every column of the prompts as a list, None where a prompt lacks it."""
        names: dict[str, None] = {}
        for prompt in self.prompts:
            names.update(dict.fromkeys(prompt.columns))
        return {name: [prompt.columns.get(name) for prompt in self.prompts] for name in names}


@dataclass(frozen=True, kw_only=True)
class CallParts:
    """The keywords of a call, by what they are."""

    samples: Mapping[str, Sequence[Any]]
    """One entry for each sample, in every value."""
    constants: Mapping[str, Any]
    """Standard arguments that are one for all samples; those that this batch does not have are None."""


def call_parts(batch: ScoreBatch, info: ScorerInfo, state: RunProgress) -> CallParts:
    """Lay a batch out as the keywords a scorer is called with; raises ValueError for a column named like a keyword."""
    columns = batch.columns()
    clash = sorted(set(columns) & {*STANDARD_ARGUMENTS, *batch.drawn})
    if clash:
        raise ValueError(f"the data set's column '{clash[0]}' has the name of a scorer argument; rename the column")
    texts = list(batch.texts) if batch.texts is not None else [""] * batch.count
    prompts: list[Any] = [prompt.text for prompt in batch.prompts]
    completions: list[Any] = texts
    if info.conversational:
        prompts = [[{"role": "user", "content": text}] for text in prompts]
        completions = [[{"role": "assistant", "content": text}] for text in texts]
    given: dict[str, Sequence[Any] | None] = {
        "prompts": prompts,
        "completions": completions,
        "completion_ids": batch.token_ids,
        "images": batch.images,
        "draft_images": batch.draft_images,
        "critiques": batch.critiques,
        **batch.drawn,
        **columns,
    }
    return CallParts(
        samples={name: value for name, value in given.items() if value is not None},
        constants={"trainer_state": state, **{name: None for name, value in given.items() if value is None}},
    )


def applicable(batch: ScoreBatch, parts: CallParts, info: ScorerInfo) -> list[int]:
    """Return the samples that have everything in `info.needs`."""
    if "completions" in info.needs and batch.texts is None:
        return []
    absent = [name for name in info.needs if name not in parts.samples]
    if absent:
        return []
    return [i for i in range(batch.count) if all(parts.samples[name][i] is not None for name in info.needs)]


__all__ = ["CallParts", "Image", "ScoreBatch", "applicable", "call_parts", "to_uint8"]
