"""Critique: what is wrong with an image and one edit, or the words that end the loop. It is written below an image."""

from __future__ import annotations

from r3_rl.nodes import Node
from r3_rl.policy.base import Sampling
from r3_rl.stages.base import Reading
from r3_rl.stages.settings import LoopSettings
from r3_rl.types import Context, ImageSegment, TextSegment


class _Critique:
    name, number = "critique", 2

    def asked(self, parent: Node) -> bool:
        """Not where the loop has ended, nor below an image whose score is missing: what it gains would be missing."""
        return isinstance(parent.sample, ImageSegment) and (parent.verdict is None or parent.score is not None)

    def context(self, parent: Node, settings: LoopSettings) -> Context:
        return (parent.looked_at, *settings.protocol.reflect_pieces(parent.prompt))

    def sampling(self, settings: LoopSettings) -> Sampling:
        return settings.critique

    def read(self, text: TextSegment, settings: LoopSettings) -> Reading:
        critique = settings.protocol.read_critique(text)
        return Reading(well_formed=critique.well_formed, critique=critique)


CRITIQUE = _Critique()
