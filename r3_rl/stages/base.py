"""What a stage is: one kind of text or image of the loop, always made below one kind of node.

A stage knows its context, how its answer is read, and what scorers see of it. Who runs stages, and in which order, is
`rollout.engine`; what a stage earns is `training.earned`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from r3_rl.nodes import Node
from r3_rl.policy.base import Sampling
from r3_rl.stages.settings import DrawingPlan, LoopSettings
from r3_rl.types import Context, Critique, TextSegment


class Stage(Protocol):
    """What stages of both kinds have."""

    @property
    def name(self) -> str:
        """As in metrics, timings and the self-check."""
        ...

    @property
    def number(self) -> int:
        """Keeps the stage's seeds apart from those of others."""
        ...

    def asked(self, parent: Node) -> bool:
        """Whether anything is made below this node."""
        ...

    def context(self, parent: Node, settings: LoopSettings) -> Context:
        """What the policy reads first."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """How a text was read."""

    well_formed: bool
    critique: Critique | None = None


class WritingStage(Stage, Protocol):
    """A stage whose nodes are texts."""

    def sampling(self, settings: LoopSettings) -> Sampling:
        """How the text is sampled."""
        ...

    def read(self, text: TextSegment, settings: LoopSettings) -> Reading:
        """What the text says."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """What scorers see beside an image."""

    text: str
    """The plan or the critique that led to it; empty without one."""
    before: Node | None = None
    """The image that it was refined from."""


class DrawingStage(Stage, Protocol):
    """A stage whose nodes are images."""

    def drawing(self, settings: LoopSettings) -> DrawingPlan:
        """How the image is drawn."""
        ...

    def shown(self, parent: Node) -> Shown:
        """What scorers see beside the image."""
        ...
