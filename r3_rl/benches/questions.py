"""Questions about images that a world can inspect: those that it drew, and those that the model drew itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from r3_rl.benches.base import BATCH, GREEDY, SAMPLED, Figure, Job, Sample, ScoredImage
from r3_rl.benches.drawing import OF_A_SEED
from r3_rl.evaluate.base import SEED
from r3_rl.evaluate.reading import ANSWER_TOKENS
from r3_rl.modalities import ImagePiece, TextPiece
from r3_rl.observe.trajectories import to_pixels
from r3_rl.rollout.engine import run_loop
from r3_rl.rollout.rows import row_seeds
from r3_rl.stages import ANSWER
from r3_rl.stages.protocol import split_thought
from r3_rl.types import Prompt
from r3_rl.worlds.base import Question, World

READS = "Understanding, on images of the world"
OWN = "Understanding, on its own first images"


@dataclass(frozen=True, kw_only=True, eq=False)
class QuestionsBench:
    """Questions about images that the world drew."""

    world: World[Any]
    asked: Sequence[Question]
    decodings: Sequence[str] = (GREEDY, SAMPLED)
    batch: int = BATCH
    draws: bool = False

    @property
    def name(self) -> str:
        """Of the world."""
        return f"{self.world.name}.questions"

    @property
    def title(self) -> str:
        """As people say it."""
        return f"{self.world.name}: questions about images"

    @property
    def items(self) -> Sequence[str]:
        """The questions."""
        return [asked.words for asked in self.asked]

    @property
    def facts(self) -> Mapping[str, str]:
        """How it is asked."""
        return {"prompt": "the image, then the question", "answer": "the word after the thought, exactly"}

    def measure(self, job: Job, batch: slice) -> list[Sample]:
        """Ask a batch."""
        asked = self.asked[batch]
        return [
            Sample(item=f"{place:05d} {question.words}", values=_values("questions", question, said), shown=shown)
            for place, question, (said, shown) in zip(
                range(batch.start, batch.stop), asked, _answers(job, asked, batch.start), strict=True
            )
        ]

    def figures(self, names: Sequence[str]) -> list[Figure]:
        """All questions, and by kind."""
        head = Figure(
            name="questions", label="Questions answered", hint="on images it did not draw", group=READS, headline=True
        )
        return [head, *_by_kind("questions", READS, self.world)]


@dataclass(frozen=True, kw_only=True, eq=False)
class OwnImagesBench:
    """Questions about the model's own first images, answered as the inspector reads them: does it see what it drew?

    Models have other images, so their figures have other items; a draft of which no answer is sure is left out.
    """

    world: World[Any]
    prompts: Sequence[Prompt]
    decodings: Sequence[str] = (GREEDY, SAMPLED)
    batch: int = BATCH
    draws: bool = True

    @property
    def name(self) -> str:
        """Of the world."""
        return f"{self.world.name}.own"

    @property
    def title(self) -> str:
        """As people say it."""
        return f"{self.world.name}: questions about its own images"

    @property
    def items(self) -> Sequence[str]:
        """The prompts."""
        return [prompt.text for prompt in self.prompts]

    @property
    def facts(self) -> Mapping[str, str]:
        """What is asked about."""
        return {"images": "first images of held-out prompts", "answers": "from exact inspection of their pixels"}

    def measure(self, job: Job, batch: slice) -> list[Sample]:
        """Draw a batch, inspect it, ask one question about each image."""
        prompts, seed = self.prompts[batch], SEED + OF_A_SEED * job.seed + batch.start
        drawn = [t.rounds[0].image.image for t in run_loop(job.policy, prompts, job.loop, rounds=0, seed=seed)]
        pixels = [image.numpy() for image in drawn]
        rng, kinds = np.random.default_rng(seed), list(self.world.question_kinds)
        questions = [
            self.world.ask(image, scene, kinds[place % len(kinds)], rng)
            for place, (image, scene) in enumerate(zip(pixels, self.world.inspect(np.stack(pixels)), strict=True))
        ]
        answers = iter(_answers(job, [q for q in questions if q is not None], batch.start))
        samples = []
        for place, prompt, image, question in zip(
            range(batch.start, batch.stop), prompts, drawn, questions, strict=True
        ):
            said, shown = next(answers) if question is not None else ("", {})
            samples.append(
                Sample(
                    item=f"{place:05d} {prompt.text}",
                    values={} if question is None else _values("own", question, said),
                    shown={"prompt": prompt.text, **shown},
                    images={"draft": ScoredImage(pixels=to_pixels(image), score=None)},
                )
            )
        return samples

    def figures(self, names: Sequence[str]) -> list[Figure]:
        """All questions, and by kind."""
        head = Figure(name="own", label="Questions answered", hint="on images that it drew itself", group=OWN)
        return [head, *_by_kind("own", OWN, self.world)]


def _answers(job: Job, asked: Sequence[Question], start: int) -> list[tuple[str, dict[str, str]]]:
    """The word after each thought, and what a reader wants to see."""
    contexts = [(ImagePiece(image=torch.from_numpy(q.image)), TextPiece(text=q.text)) for q in asked]
    sampling = replace(job.loop.critique, max_new_tokens=ANSWER_TOKENS, task=ANSWER.name)
    texts = job.policy.write(contexts, sampling, row_seeds(SEED + OF_A_SEED * job.seed + start, 7, len(asked)))
    shown = [
        {"question": q.words, "answer": q.answer, "said": text.text, "kind": q.kind}
        for q, text in zip(asked, texts, strict=True)
    ]
    return [(split_thought(text.text)[1], row) for text, row in zip(texts, shown, strict=True)]


def _values(name: str, question: Question, said: str) -> dict[str, float]:
    hit = float(said == question.answer)
    return {name: hit, f"{name}/{question.kind}": hit}


def _by_kind(name: str, group: str, world: World[Any]) -> list[Figure]:
    return [
        Figure(name=f"{name}/{kind}", label=f"… {words}", group=group) for kind, words in world.question_kinds.items()
    ]
