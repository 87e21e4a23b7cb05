"""A stand-in for the policy whose texts and images are given, for figures that are worked out by hand.

Images are told apart by their first pixel, so that a text can depend on what is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch

from r3_rl.modalities import Context, ImagePiece, TextSegment, still
from r3_rl.policy.bagel.backbone import BAGEL
from r3_rl.policy.base import Sampling
from r3_rl.stages.protocol import PROTOCOLS
from r3_rl.stages.settings import LoopSettings
from r3_rl.types import Critique, Prompt, Round, Trajectory, Verdict
from tests.policy.tiny import PROMPTS, loop

STOP = "<think> nothing </think> no further edit needed"
EDIT = "<think> nothing </think> add a red circle top left"
BROKEN = "<think> nothing"


def settings() -> LoopSettings:
    """The loop with critiques as the embedded model writes them."""
    return replace(loop(), protocol=PROTOCOLS["compact"])


def segment(text: str, *, log_probs: Sequence[float] = (0.0,)) -> TextSegment:
    return TextSegment(
        context=(), token_ids=(1,) * len(log_probs), log_probs=torch.tensor(log_probs), text=text, ended=True
    )


def critique(text: str) -> Critique:
    return PROTOCOLS["compact"].read_critique(segment(text))


def image(number: float) -> torch.Tensor:
    """An image that says its number, in [0, 1], by its first pixel."""
    pixels = torch.zeros(3, 36, 36)
    pixels[0, 0, 0] = number
    return pixels


def trajectory(
    *totals: float | None,
    number: float = 0.0,
    said: str | None = None,
    plan: str | None = None,
    prompt: Prompt = PROMPTS[0],
    pixels: torch.Tensor | None = None,
) -> Trajectory:
    """A judged trajectory.

    Args:
        totals: of its images, the draft's first.
        number: of the draft.
        said: the last critique.
        plan: of the draft.
        prompt: what was asked for.
        pixels: the draft itself, in place of one with a number.
    """
    rounds = [
        Round(
            image=still(image(number) if pixels is None else pixels),
            plan=segment(plan) if plan is not None and place == 0 else None,
            critique=critique(EDIT) if place else None,
            verdict=Verdict(total=total),
        )
        for place, total in enumerate(totals)
    ]
    return Trajectory(prompt=prompt, rounds=tuple(rounds), last_critique=critique(said) if said else None)


@dataclass
class Scripted:
    """Says what `say` returns for a context, or the given texts in turn; draws the given images in turn."""

    spec = BAGEL.spec
    say: Callable[[Context], str] | None = None
    texts: list[str] = field(default_factory=list)
    images: list[torch.Tensor] = field(default_factory=list)
    asked: list[tuple[int, Sampling]] = field(default_factory=list)
    """Rows and sampling of every call of `write`."""
    drawn_from: list[Context] = field(default_factory=list)

    def write(self, contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[int]) -> list[TextSegment]:
        assert len(set(seeds)) == len(contexts), "rows are seeded apart"
        self.asked.append((len(contexts), sampling))
        if self.say is not None:
            return [segment(self.say(context)) for context in contexts]
        said, self.texts = self.texts[: len(contexts)], self.texts[len(contexts) :]
        return [segment(text) for text in said]

    def draw(self, contexts, drawings, seeds, noise_seeds=None):
        self.drawn_from += contexts
        drawn, self.images = self.images[: len(contexts)], self.images[len(contexts) :]
        return [still(pixels) for pixels in drawn]

    def reference(self):
        return nullcontext()


def number_of(context: Context) -> float:
    """The number of the image in a context."""
    (seen,) = (piece.image for piece in context if isinstance(piece, ImagePiece))
    return round(float(seen[0, 0, 0]), 3)
