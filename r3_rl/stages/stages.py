"""What a stage is, and the five of them: one kind of text or image of the loop, always made below one kind of node.

A stage knows what the policy reads first and how its answer is read. Who runs stages, in which order and with which
settings, is `rollout.engine`; what a stage earns is in `training/`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from r3_rl.modalities import Context, DrawnSegment, TextPiece, TextSegment
from r3_rl.nodes import Node
from r3_rl.stages.protocol import said
from r3_rl.stages.settings import LoopSettings


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


class WritingStage(Stage, Protocol):
    """A stage whose nodes are texts."""

    def read(self, node: Node, text: TextSegment, settings: LoopSettings) -> Node:
        """The node with its text, and what that says."""
        ...


class _Plan:
    """What is to be drawn, in words; written below a prompt."""

    name, number = "plan", 0

    def context(self, parent: Node, settings: LoopSettings) -> Context:
        return settings.protocol.reason_context(parent.prompt)

    def read(self, node: Node, text: TextSegment, settings: LoopSettings) -> Node:
        return replace(node, sample=text, well_formed=settings.protocol.plan_well_formed(text))


class _Draft:
    """The first image, drawn below a plan, or below the prompt if plans are off."""

    name, number = "draft", 1

    def context(self, parent: Node, settings: LoopSettings) -> Context:
        plan = () if parent.sample is None else (parent.sample.piece(),)
        return (*settings.protocol.reason_context(parent.prompt), *plan)


class _Critique:
    """What is wrong with an image and one edit, or the words that end the loop; written below an image."""

    name, number = "critique", 2

    def context(self, parent: Node, settings: LoopSettings) -> Context | None:
        """None where the loop has ended, and below an image whose score is missing: what it gains would be missing."""
        if not isinstance(parent.sample, DrawnSegment) or (parent.verdict is not None and parent.score is None):
            return None
        asked = settings.protocol.reflect_template.format(prompt=parent.prompt.text)
        return (*_earlier(parent, settings), parent.looked_at, TextPiece(text=asked))

    def read(self, node: Node, text: TextSegment, settings: LoopSettings) -> Node:
        critique = settings.protocol.read_critique(text)
        return replace(node, sample=text, critique=critique, well_formed=critique.well_formed)


class _Refinement:
    """The image again with the edit, drawn below a critique that asks for one. A backbone that cannot edit draws the
    prompt again, after it has looked at the image and read the edit."""

    name, number = "refinement", 3

    def context(self, parent: Node, settings: LoopSettings) -> Context | None:
        """None below a stop, and below a malformed critique, which is not a stop either."""
        if parent.critique is None or not parent.critique.instruction:
            return None
        instruction, image = TextPiece(text=parent.critique.instruction), parent.above
        if settings.refines == "regenerate":
            asked = settings.protocol.reason_context(parent.prompt)
            return (*asked, *_earlier(image, settings), image.looked_at, instruction)
        shown = (TextPiece(text=parent.prompt.text),) if settings.show_prompt else ()
        return (*_earlier(image, settings), image.edited, *shown, instruction)


class _Answer:
    """What a question about an image is answered with, written below a given image whose prompt is the question; a
    thought may come first."""

    name, number = "answer", 4

    def context(self, parent: Node, settings: LoopSettings) -> Context:
        return (parent.looked_at, TextPiece(text=parent.prompt.text))

    def read(self, node: Node, text: TextSegment, settings: LoopSettings) -> Node:
        return replace(node, sample=text, well_formed=text.ended and bool(said(text.text)))


def _earlier(image: Node, settings: LoopSettings) -> Context:
    """The images and critiques on the way to an image, oldest first; nothing without `history`."""
    before = image.way[:-1] if settings.history else []
    return tuple(
        node.looked_at for node in before if isinstance(node.sample, DrawnSegment) or node.critique is not None
    )


PLAN, DRAFT, CRITIQUE, REFINEMENT, ANSWER = _Plan(), _Draft(), _Critique(), _Refinement(), _Answer()
