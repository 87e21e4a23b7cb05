"""Refinement: the image again, with one edit. It is drawn below a critique that asks for one.

A backbone that cannot edit draws the prompt again, after it has looked at the image and read the edit.
"""

from __future__ import annotations

from r3_rl.nodes import Node
from r3_rl.stages.base import Shown
from r3_rl.stages.settings import DrawingPlan, LoopSettings
from r3_rl.types import Context, TextPiece


class _Refinement:
    name, number = "refinement", 3

    def asked(self, parent: Node) -> bool:
        """Not below a stop, nor below a malformed critique, which is no stop either."""
        return parent.critique is not None and bool(parent.critique.instruction)

    def context(self, parent: Node, settings: LoopSettings) -> Context:
        assert parent.critique is not None and parent.parent is not None
        if settings.refines == "regenerate":
            asked = TextPiece(text=parent.critique.instruction)
            return (*settings.protocol.reason_context(parent.prompt), parent.parent.looked_at, asked)
        said = settings.protocol.refine_pieces(parent.critique, parent.prompt, show_prompt=settings.show_prompt)
        return (parent.parent.edited, *said)

    def drawing(self, settings: LoopSettings) -> DrawingPlan:
        return settings.refine

    def shown(self, parent: Node) -> Shown:
        return Shown(text=parent.text.text, before=parent.parent)


REFINEMENT = _Refinement()
