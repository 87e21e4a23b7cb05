"""Plan: what is to be drawn, in words. It is written below a prompt."""

from __future__ import annotations

from r3_rl.nodes import Node
from r3_rl.policy.base import Sampling
from r3_rl.stages.base import Reading
from r3_rl.stages.settings import LoopSettings
from r3_rl.types import Context, TextSegment


class _Plan:
    name, number = "plan", 0

    def asked(self, parent: Node) -> bool:
        return True

    def context(self, parent: Node, settings: LoopSettings) -> Context:
        return settings.protocol.reason_context(parent.prompt)

    def sampling(self, settings: LoopSettings) -> Sampling:
        assert settings.plan is not None, "plans are off"
        return settings.plan

    def read(self, text: TextSegment, settings: LoopSettings) -> Reading:
        return Reading(well_formed=settings.protocol.plan_well_formed(text))


PLAN = _Plan()
