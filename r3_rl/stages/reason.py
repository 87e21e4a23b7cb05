"""Plan and draft: what is to be drawn, in words, and the first image.

A plan is written below a prompt. A draft is drawn below a plan, or below the prompt if plans are off.
"""

from __future__ import annotations

from r3_rl.modalities import Context, TextSegment
from r3_rl.nodes import Node
from r3_rl.stages.base import Reading
from r3_rl.stages.settings import LoopSettings


class _Plan:
    name, number = "plan", 0

    def context(self, parent: Node, settings: LoopSettings) -> Context:
        return settings.protocol.reason_context(parent.prompt)

    def read(self, text: TextSegment, settings: LoopSettings) -> Reading:
        return Reading(well_formed=settings.protocol.plan_well_formed(text))


class _Draft:
    name, number = "draft", 1

    def context(self, parent: Node, settings: LoopSettings) -> Context:
        read = settings.protocol.reason_context(parent.prompt)
        if not isinstance(plan := parent.sample, TextSegment):
            return read
        return (*read, plan.piece())


PLAN, DRAFT = _Plan(), _Draft()
