"""What the page does: the loop on one prompt, with the adapter and without it in turns, and answers about an image."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue

from PIL import Image

from r3_rl.errors import InputError
from r3_rl.evaluate.loading import Loaded
from r3_rl.evaluate.refiner import Refiner, RefinerOutput
from r3_rl.modalities import ImagePiece, TextPiece
from r3_rl.pixels import from_picture
from r3_rl.policy.base import Sampling
from r3_rl.scoring.panel import Panel, ScorerSpec
from r3_rl.scoring.registry import check_scorer, load_scorer, short_name
from r3_rl.serve.conversation import Answer, answer_of
from r3_rl.serve.studio import BASE
from r3_rl.serve.worker import ModelWorker
from r3_rl.stages import ANSWER
from r3_rl.stages.settings import DrawingPlan, LoopSettings

ANSWER_TOKENS = 256
"""Most tokens of an answer."""
EXAMPLES = (
    "a red apple to the left of a green cup",
    "three oranges on a wooden table",
    "a street sign that says OPEN",
    "a black cat on a white sofa, a lamp behind it",
)
"""Prompts for a model of an open vocabulary."""
_EVERY_S = 0.1
"""Between two looks at a text that is being written: a page is sent again for each."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """How far a side has come."""

    output: RefinerOutput | None = None
    """After the last stage that is done; None before the draft."""
    stage: str = ""
    """What is being written: `plan` or `critique`; empty while nothing is."""
    text: str = ""
    """As far as it is written."""


@dataclass(frozen=True, kw_only=True)
class Scales:
    """How strongly drawings are guided; 1 switches guidance off."""

    draft: float
    """Text scale of drafts."""
    refine: float
    """Text scale of refinements."""
    image: float
    """Image scale of refinements."""

    @classmethod
    def of(cls, loop: LoopSettings) -> Scales:
        """Those that the model was trained with."""
        draft, refine = loop.draft.drawing.guidance, loop.refine.drawing.guidance
        return cls(draft=draft.text, refine=refine.text, image=refine.image)

    def put_into(self, loop: LoopSettings) -> LoopSettings:
        """The loop with these scales."""
        return replace(
            loop,
            draft=_guided(loop.draft, text=self.draft),
            refine=_guided(loop.refine, text=self.refine, image=self.image),
        )


def _guided(plan: DrawingPlan, *, text: float, image: float | None = None) -> DrawingPlan:
    own = plan.drawing.guidance
    guidance = replace(own, text=text, image=own.image if image is None else image)
    return replace(plan, drawing=replace(plan.drawing, guidance=guidance))


class Player:
    """A model at play: what its page asks for, in the threads of the page. The model runs in a thread of its own.

    Args:
        loaded: the model, with its adapter if it has one.
        name: of the model with its adapter.
        scorers: that may be asked about images.

    Raises:
        InputError: an adapter that is called like the base.
    """

    def __init__(self, loaded: Loaded, *, name: str, scorers: Sequence[ScorerSpec] = ()) -> None:
        if name == BASE:
            raise InputError(f"the adapter cannot be called '{BASE}'", hint="rename its folder")
        self.sides = (name, BASE) if loaded.adapted else (BASE,)
        """The models that are shown side by side, the one with the adapter first."""
        self.loop = loaded.loop
        self.scorers = {spec.name: spec for spec in scorers}
        self._refiner = Refiner(loaded.policy, loaded.loop, tokenizer=loaded.policy.tokenizer)
        self._worker = ModelWorker(loaded.policy, adapted=loaded.adapted)

    def draw(
        self,
        prompt: str,
        *,
        seed: int,
        rounds: int,
        scales: Scales | None = None,
        scorers: Sequence[str] = (),
        sides: Sequence[str] | None = None,
    ) -> Iterator[dict[str, Shown]]:
        """Run the loop for each side, one stage at a time in turns; give what there is after each stage, by side, and
        the plans and critiques while they are written.

        Args:
            prompt: what to draw.
            seed: 0 or more, the same for every side.
            rounds: refinements at most.
            scales: of guidance; None takes the model's own.
            scorers: names of those that are asked; none of them asks the model's world, if it has one.
            sides: of `sides`; None takes all.

        Raises:
            InputError: what `Refiner.stream` raises; ScorerError for a scorer that breaks its contract.
        """
        loop = self.loop if scales is None else scales.put_into(self.loop)
        written: SimpleQueue[tuple[str, str] | None] = SimpleQueue()
        with ExitStack() as held:
            panel = held.enter_context(Panel([self.scorers[name] for name in scorers])) if scorers else None
            thread = held.enter_context(ThreadPoolExecutor(1))  # stages run in it, while this one looks at their texts
            streams = {
                side: self._refiner.with_policy(
                    self._worker.client(base=side == BASE, follows=lambda stage, text: written.put((stage, text))), loop
                ).stream(prompt, num_rounds=rounds, seed=seed, submit=panel.submit if panel else None)
                for side in (self.sides if sides is None else sides)
            }
            so_far: dict[str, Shown] = {}
            while streams:
                for side, stream in list(streams.items()):
                    stage_done = thread.submit(next, stream, None)
                    stage_done.add_done_callback(lambda _: written.put(None))
                    output = so_far[side].output if side in so_far else None
                    for stage, text in _looks(written):
                        so_far[side] = Shown(output=output, stage=stage, text=text)
                        yield dict(so_far)
                    output = stage_done.result()
                    if output is None:
                        del streams[side]
                        continue
                    so_far[side] = Shown(output=output)
                    yield dict(so_far)

    def ask(self, image: Image.Image, question: str) -> dict[str, Answer]:
        """Return what each side answers to a question about an image, in the likeliest words.

        Raises:
            InputError: an empty question, or words that the model does not know.
        """
        self._refiner.check([question])
        context = (ImagePiece(image=from_picture(image)), TextPiece(text=question))
        sampling = Sampling(max_new_tokens=ANSWER_TOKENS, temperature=0.0, task=ANSWER.name)
        clients = {side: self._worker.client(base=side == BASE) for side in self.sides}
        return {side: answer_of(*client.write([context], sampling, [0])) for side, client in clients.items()}

    @property
    def examples(self) -> list[str]:
        """Prompts to begin with: one of each kind of the model's world."""
        world = self._refiner.world
        if world is None:
            return list(EXAMPLES)
        return [prompt.text for tag in world.tags for prompt in world.prompts(1, split="held_out", tags=[tag], seed=0)]

    @property
    def questions(self) -> list[str]:
        """Questions to begin with: one of each kind of the model's world."""
        world = self._refiner.world
        if world is None:
            return ["What is in this image?", "How many objects are there?"]
        asked = {question.kind: question.text for question in world.questions(60, seed=0)}
        return [asked[kind] for kind in world.question_kinds if kind in asked]

    def close(self) -> None:
        """End the model's thread; what waits is refused."""
        self._worker.close()


def _looks(written: SimpleQueue[tuple[str, str] | None]) -> Iterator[tuple[str, str]]:
    """The newest text, at most every `_EVERY_S`, until None comes; the last one is looked at if it stays."""
    newest: tuple[str, str] | None = None
    until = 0.0
    while True:
        try:
            left = max(0.0, until - time.monotonic())
            found = written.get(timeout=left) if newest is not None and left else written.get(block=newest is None)
            if found is None:
                return
            newest = found
        except Empty:
            assert newest is not None, "else it waits"
            yield newest
            newest, until = None, time.monotonic() + _EVERY_S


def scorers_named(names: Sequence[str]) -> list[ScorerSpec]:
    """Load scorers by the names that recipes give them.

    Raises:
        InputError: one that does not exist, needs parameters or lacks a package; ScorerError if one cannot be built.
    """
    for name in names:
        if problems := check_scorer(name):
            raise InputError(problems[0])
    return [ScorerSpec(name=short_name(name), scorer=load_scorer(name, {}, Path.cwd()), params={}) for name in names]
