"""What a stage is: one kind of text or image of the loop, always made below one kind of node.

A stage knows its context and how its answer is read. Who runs stages, in which order and with which settings, is
`rollout.engine`; what a stage earns is `training.credit`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from r3_rl.modalities import Context, TextSegment
from r3_rl.nodes import Node
from r3_rl.stages.settings import LoopSettings
from r3_rl.types import Critique


class Stage(Protocol):
    """A stage whose nodes are images; `WritingStage` is one whose nodes are texts."""

    @property
    def name(self) -> str:
        """As in metrics, timings and the self-check."""
        ...

    @property
    def number(self) -> int:
        """Keeps the stage's seeds apart from those of others."""
        ...

    def context(self, parent: Node, settings: LoopSettings) -> Context | None:
        """What the policy reads first; None if nothing is made below this node."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """How a text was read."""

    well_formed: bool
    critique: Critique | None = None


class WritingStage(Stage, Protocol):
    """A stage whose nodes are texts."""

    def read(self, text: TextSegment, settings: LoopSettings) -> Reading:
        """What the text says."""
        ...
