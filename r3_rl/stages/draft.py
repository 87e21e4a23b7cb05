"""Draft: the first image. It is drawn below a plan, or straight below the prompt where plans are off."""

from __future__ import annotations

from r3_rl.nodes import Node
from r3_rl.stages.base import Shown
from r3_rl.stages.settings import DrawingPlan, LoopSettings
from r3_rl.types import Context, TextPiece


class _Draft:
    name, number = "draft", 1

    def asked(self, parent: Node) -> bool:
        return True

    def context(self, parent: Node, settings: LoopSettings) -> Context:
        read = settings.protocol.reason_context(parent.prompt)
        if parent.sample is None:
            return read
        return (*read, TextPiece(text=parent.text.text, token_ids=parent.text.token_ids))

    def drawing(self, settings: LoopSettings) -> DrawingPlan:
        return settings.draft

    def shown(self, parent: Node) -> Shown:
        return Shown(text=parent.text.text if parent.sample else "")


DRAFT = _Draft()
