"""What the policy is told at each stage, and how its answers are read.

Reason: [system, prompt] -> plan -> image. Reflect: [image, template(prompt)] -> critique. Refine: [image, edit
instruction] -> image. A plan is `<think>...</think>`; a critique is `<think>what is wrong</think> one edit`, or the
stop words. A critique that does not close its thoughts is malformed: it is not a stop, and nothing is drawn from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from r3_rl.errors import InputError
from r3_rl.modalities import Context, TextPiece, TextSegment
from r3_rl.policy.registry import find
from r3_rl.types import Critique, Prompt

THINK, END_THINK = "<think>", "</think>"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Templates of a language that the policy understands. `{prompt}` stands for the prompt's text."""

    reason_system: str = ""
    """Read before the prompt; empty for none."""
    reflect_template: str
    """Read after the image."""
    stop_words: str = "no further edit needed"
    """What a critique says instead of an instruction when the image is right (compared without case and dots)."""

    def plan_well_formed(self, segment: TextSegment) -> bool:
        """A plan ends by itself and is one closed thought with nothing after it."""
        thought, rest = split_thought(segment.text)
        return segment.ended and bool(thought) and rest == ""

    def read_critique(self, segment: TextSegment) -> Critique:
        """Reads a critique as sampled."""
        thought, rest = split_thought(segment.text)
        well_formed = segment.ended and bool(thought) and bool(rest)
        stop = well_formed and rest.lower().strip(" .!") == self.stop_words
        return Critique(
            segment=segment, well_formed=well_formed, stop=stop, instruction=rest if well_formed and not stop else ""
        )

    def reason_context(self, prompt: Prompt) -> Context:
        """What a plan is written from."""
        system = (TextPiece(text=self.reason_system, keep=True),) if self.reason_system else ()
        return (*system, TextPiece(text=prompt.text))


def split_thought(text: str) -> tuple[str, str]:
    """The thought and what follows it; both empty when the text is not one closed thought and a rest.

    >>> split_thought("<think> a cross is missing </think> add a cross")
    ('a cross is missing', 'add a cross')
    >>> split_thought("<think> a cross is missing")
    ('', '')
    """
    text = text.strip()
    if not text.startswith(THINK) or text.count(THINK) != 1 or text.count(END_THINK) != 1:
        return "", ""
    thought, rest = text[len(THINK) :].split(END_THINK)
    return thought.strip(), rest.strip()


def said(text: str) -> str:
    """Return the answer in a text: what follows the thought, or all of it if there is none.

    >>> said("<think> a red cross </think> yes"), said("yes"), said("<think> a red")
    ('yes', 'yes', '')
    """
    return text.strip() if THINK not in text else split_thought(text)[1]


PROTOCOLS = {"compact": Protocol(reflect_template="check {prompt}")}
"""Protocols by their name in a recipe; backbones bring more."""


def protocol_named(name: str) -> Protocol:
    """Return the protocol of a recipe: one of `PROTOCOLS`, or the templates of the backbone of this name.

    Raises InputError where there is neither.

    >>> protocol_named("compact").stop_words
    'no further edit needed'
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    templates = find(name).spec.templates
    if templates is None:
        raise InputError(f"the backbone '{name}' has no templates", hint=f"protocols: {', '.join(PROTOCOLS)}")
    return Protocol(reason_system=templates.reason_system, reflect_template=templates.reflect)
