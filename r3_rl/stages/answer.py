"""Answer: what a question about an image is answered with. It is written below a given image, whose prompt is the
question; a thought may come first."""

from __future__ import annotations

from r3_rl.modalities import Context, TextPiece, TextSegment
from r3_rl.nodes import Node
from r3_rl.stages.base import Reading
from r3_rl.stages.protocol import split_thought
from r3_rl.stages.settings import LoopSettings


def said(text: str) -> str:
    """Return the answer in a text: what follows the thought, or all of it if there is none.

    >>> said("<think> a red cross </think> yes"), said("yes"), said("<think> a red")
    ('yes', 'yes', '')
    """
    return text.strip() if "<think>" not in text else split_thought(text)[1]


class _Answer:
    name, number = "answer", 4

    def context(self, parent: Node, settings: LoopSettings) -> Context:
        return (parent.looked_at, TextPiece(text=parent.prompt.text))

    def read(self, text: TextSegment, settings: LoopSettings) -> Reading:
        return Reading(well_formed=text.ended and bool(said(text.text)))


ANSWER = _Answer()
