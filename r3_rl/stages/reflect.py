"""Critique and refinement: what is wrong with an image and one edit, and the image again with that edit.

A critique is written below an image; it may also be the words that end the loop. A refinement is drawn below a critique
that asks for an edit. A backbone that cannot edit draws the prompt again, after it has looked at the image and read the
edit.
"""

from __future__ import annotations

from r3_rl.nodes import Node
from r3_rl.stages.base import Reading
from r3_rl.stages.settings import LoopSettings
from r3_rl.types import Context, ImageSegment, TextPiece, TextSegment


class _Critique:
    name, number = "critique", 2

    def context(self, parent: Node, settings: LoopSettings) -> Context | None:
        """None where the loop has ended, and below an image whose score is missing: what it gains would be missing."""
        if not isinstance(parent.sample, ImageSegment) or (parent.verdict is not None and parent.score is None):
            return None
        asked = settings.protocol.reflect_template.format(prompt=parent.prompt.text)
        return (parent.looked_at, TextPiece(text=asked))

    def read(self, text: TextSegment, settings: LoopSettings) -> Reading:
        critique = settings.protocol.read_critique(text)
        return Reading(well_formed=critique.well_formed, critique=critique)


class _Refinement:
    name, number = "refinement", 3

    def context(self, parent: Node, settings: LoopSettings) -> Context | None:
        """None below a stop, and below a malformed critique, which is not a stop either."""
        if parent.critique is None or not parent.critique.instruction:
            return None
        instruction = TextPiece(text=parent.critique.instruction)
        if settings.refines == "regenerate":
            return (*settings.protocol.reason_context(parent.prompt), parent.above.looked_at, instruction)
        shown = (TextPiece(text=parent.prompt.text),) if settings.show_prompt else ()
        return (parent.above.edited, *shown, instruction)


CRITIQUE, REFINEMENT = _Critique(), _Refinement()
