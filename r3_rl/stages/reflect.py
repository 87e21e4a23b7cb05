"""Critique and refinement: what is wrong with an image and one edit, and the image again with that edit.

A critique is written below an image; it may also be the words that end the loop. A refinement is drawn below a critique
that asks for an edit. A backbone that cannot edit draws the prompt again, after it has looked at the image and read the
edit.
"""

from __future__ import annotations

from r3_rl.modalities import Context, DrawnSegment, TextPiece, TextSegment
from r3_rl.nodes import Node
from r3_rl.stages.base import Reading
from r3_rl.stages.settings import LoopSettings


class _Critique:
    name, number = "critique", 2

    def context(self, parent: Node, settings: LoopSettings) -> Context | None:
        """None where the loop has ended, and below an image whose score is missing: what it gains would be missing."""
        if not isinstance(parent.sample, DrawnSegment) or (parent.verdict is not None and parent.score is None):
            return None
        asked = settings.protocol.reflect_template.format(prompt=parent.prompt.text)
        return (*_earlier(parent, settings), parent.looked_at, TextPiece(text=asked))

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
            asked = settings.protocol.reason_context(parent.prompt)
            return (*asked, *_earlier(parent.above, settings), parent.above.looked_at, instruction)
        shown = (TextPiece(text=parent.prompt.text),) if settings.show_prompt else ()
        return (*_earlier(parent.above, settings), parent.above.edited, *shown, instruction)


def _earlier(image: Node, settings: LoopSettings) -> Context:
    """The images and critiques on the way to an image, oldest first; nothing without `history`."""
    before = image.way[:-1] if settings.history else []
    return tuple(
        node.looked_at for node in before if isinstance(node.sample, DrawnSegment) or node.critique is not None
    )


CRITIQUE, REFINEMENT = _Critique(), _Refinement()
