"""Questions about images in files: asked greedily, and scored by a rule of the benchmark's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from r3_rl.benches.base import FEW, GREEDY, Figure, Job, Request, Sample
from r3_rl.benches.drawing import OF_A_SEED
from r3_rl.errors import InputError
from r3_rl.evaluate.base import SEED
from r3_rl.modalities import ImagePiece, TextPiece
from r3_rl.pixels import open_image
from r3_rl.policy.base import Policy
from r3_rl.policy.words import said_unknown
from r3_rl.rollout.rows import row_seeds
from r3_rl.stages import ANSWER
from r3_rl.stages.protocol import split_thought

SHORT = "Answer the question using a single word or phrase."
YES_NO = "Please answer yes or no."
LETTER = "Answer with the option's letter from the given choices directly."
ANSWER_TOKENS = 64
"""Most tokens of an answer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """An item: one image, and one or more questions about it."""

    name: str
    """Unique in its bench."""
    image: Path | bytes
    """A file, or what one holds."""
    texts: Sequence[str]
    """As the model reads them, each in a request of its own."""
    score: Callable[[Sequence[str]], Mapping[str, float]]
    """What was answered -> values."""
    shown: Mapping[str, Any]
    """For a reader: question and right answers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AskedBench:
    """Questions with a rule for their answers."""

    name: str
    title: str
    asked: Sequence[Asked]
    rows: Callable[[Sequence[str]], list[Figure]]
    """Names of values -> rows of the table."""
    facts: Mapping[str, str] = field(default_factory=dict)
    decodings: Sequence[str] = (GREEDY,)
    batch: int = FEW
    draws: bool = False

    @property
    def items(self) -> Sequence[str]:
        """The questions."""
        return ["\n".join([asked.name, *asked.texts]) for asked in self.asked]

    def measure(self, job: Job, batch: slice) -> list[Sample]:
        """Ask a batch."""
        these = self.asked[batch]
        flat = [(asked.image, text) for asked in these for text in asked.texts]
        said = iter(answers(job, [image for image, _ in flat], [text for _, text in flat], start=batch.start))
        samples = []
        for asked in these:
            texts = [next(said) for _ in asked.texts]
            shown = {**asked.shown, "said": texts[0] if len(texts) == 1 else texts}
            samples.append(Sample(item=asked.name, values=asked.score(texts), shown=shown))
        return samples

    def figures(self, names: Sequence[str]) -> list[Figure]:
        """Those of the benchmark."""
        return self.rows(names)


def answers(job: Job, images: Sequence[Path | bytes], texts: Sequence[str], *, start: int) -> list[str]:
    """Return the answers to questions, each after its image; a thought before an answer is left out.

    Args:
        job: the model and its decoding.
        images: [n] files, or what they hold.
        texts: [n] questions.
        start: place of the batch among the items, from which its seeds follow.
    """
    _refuse_unknown_words(job.policy, texts)
    opened: dict[Path | bytes, torch.Tensor] = {}
    contexts = []
    for image, text in zip(images, texts, strict=True):
        if image not in opened:
            opened[image] = open_image(image)
        contexts.append((ImagePiece(image=opened[image]), TextPiece(text=text)))
    sampling = replace(job.loop.critique, max_new_tokens=ANSWER_TOKENS, task=ANSWER.name)
    seeds = row_seeds(SEED + OF_A_SEED * job.seed + start, 0, len(texts))
    return [answer_in(text.text) for text in job.policy.write(contexts, sampling, seeds)]


def answer_in(text: str) -> str:
    """What follows a closed thought; all of a text without one.

    >>> answer_in("<think> two red circles </think> two"), answer_in(" Two. ")
    ('two', 'Two.')
    """
    return split_thought(text)[1] or text.strip()


def question_for(request: Request, question: str, instruction: str) -> str:
    """Return a question as the model reads it: with the benchmark's instruction, which a model that knows only the
    words of a world would not understand."""
    return question if request.world is not None else f"{question}\n{instruction}"


def _refuse_unknown_words(policy: Policy, texts: Sequence[str]) -> None:
    for text in texts:
        if unknown := said_unknown(policy.tokenizer, text):
            raise InputError(
                f"{unknown}, asked {text[:60]!r}",
                hint="a model of an embedded world answers questions in its own words only",
            )
