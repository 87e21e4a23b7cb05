"""The words of the toolkit as data: what flows between the rooms. What contexts and rollouts consist of is in
`modalities.py`. Images are float32 tensors [3, H, W] in [0, 1] inside the toolkit and uint8 [H, W, 3] at its borders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from r3_rl.modalities import ImageSegment, TextSegment

STANDARD_ARGUMENTS = (
    "prompts",
    "completions",
    "completion_ids",
    "images",
    "draft_images",
    "critiques",
    "trainer_state",
    "log_metric",
    "log_extra",
)
"""Keywords that every call of a scorer offers, before the data set's columns."""
STAGES = ("plan", "draft", "critique", "refinement", "answer")
"""What a policy is asked for."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What the user asks to be drawn, with the columns of its data set.

    >>> Prompt(text="a red circle", columns={"tag": "single_object"}).columns["tag"]
    'single_object'
    """

    text: str
    """The words shown to the policy."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The data set's own columns, handed to scorers by keyword (GenEval metadata, questions, ...)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Critique:
    """What the policy said about an image."""

    segment: TextSegment
    well_formed: bool
    """True when the text closes its thoughts and then says one thing."""
    stop: bool
    """True when a well-formed critique asks for no further edit."""
    instruction: str
    """The edit instruction; empty on a stop or a malformed critique."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the panel said about one image (or one text)."""

    total: float | None
    """Weighted value in the panel's range; None when no scorer gave a usable score (missing is never 0)."""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """Raw score by scorer name."""
    words: str = ""
    """The reason in words, where a scorer gave one (`log_extra("reason", [...])`)."""
    best: float = 1.0
    """Total of a perfect image: what the scorers that apply, with their weights and ranges, give at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """An image of a trajectory and how it came about. Round 0 is the draft."""

    image: ImageSegment
    plan: TextSegment | None = None
    """Round 0: the plan the draft was drawn from."""
    critique: Critique | None = None
    """Round >= 1: the critique of the image before, which led to this image."""
    verdict: Verdict | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """Draft, critiques and refinements of one prompt."""

    prompt: Prompt
    rounds: tuple[Round, ...]
    last_critique: Critique | None = None
    """The critique that ended the loop (a stop or a malformed one); None when `rounds` ran out."""

    @property
    def final(self) -> Round:
        """The last image drawn."""
        return self.rounds[-1]
