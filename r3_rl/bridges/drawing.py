"""A drawing environment for TRL's GRPOTrainer: a language model writes edit instructions, a frozen painter draws.

Every rollout starts from a draft of the row's prompt. The model sees it, may call the tool `draw_again` with an
instruction, sees what came of it, and so on. The last picture is what `as_trl_reward` scores; without a call it is the
draft, so saying nothing is the stop of R3's loop: a gain of 0.
"""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from PIL import Image

from r3_rl.errors import InputError

Describe = Callable[[Image.Image], str]
"""A picture in words, for models that cannot see."""


class Painter(Protocol):
    """Who draws: one of our policies (`PolicyPainter`), a pipeline, a server. The same arguments draw the same."""

    def draft(self, prompt: str, *, seed: int) -> Image.Image:
        """Draw a prompt, RGB."""

    def redraw(self, picture: Image.Image, instruction: str, *, prompt: str, seed: int) -> Image.Image:
        """Change a picture as an instruction says, RGB. An `InputError` is told to the model; it may try again."""


class PolicyPainter:
    """Draws with a policy of ours, its weights left alone: no stochastic steps, no gradient.

        pipe = Refiner.from_pretrained(adapter="runs/demo/adapter")
        painter = PolicyPainter(pipe.policy, pipe.loop)

    Args:
        policy: any backbone.
        loop: how it writes plans and draws.
        temperature: of plans, 0 or more.
    """

    def __init__(self, policy: Any, loop: Any, *, temperature: float = 0.3) -> None:
        self.policy, self.loop = policy, loop.for_evaluation(temperature)

    def draft(self, prompt: str, *, seed: int) -> Image.Image:
        """Write a plan where the loop has plans, and draw."""
        import torch

        from r3_rl.rollout.engine import Engine
        from r3_rl.types import Prompt

        with torch.no_grad():
            (drawn,) = Engine(policy=self.policy, settings=self.loop).drafts([Prompt(text=prompt)], seed=seed)
        return _picture(drawn.image)

    def redraw(self, picture: Image.Image, instruction: str, *, prompt: str, seed: int) -> Image.Image:
        """Refine; the policy reads what its loop shows it at this stage, with the instruction in place of its own."""
        import torch

        from r3_rl.nodes import given_critique, given_image
        from r3_rl.pixels import from_picture
        from r3_rl.rollout.engine import Engine
        from r3_rl.types import Prompt

        critique = given_critique(given_image(Prompt(text=prompt), from_picture(picture)), instruction)
        with torch.no_grad():
            (drawn,) = Engine(policy=self.policy, settings=self.loop).refinements([critique], seed=seed)
        assert drawn is not None, "a critique with an instruction is drawn"
        return _picture(drawn.image)


def drawing_environment(
    painter: Painter,
    *,
    describe: Describe | None = None,
    max_redraws: int = 1,
    prompt_key: str | None = None,
    drafts_kept: int = 256,
) -> Callable[[], DrawingEnvironment]:
    """Make what `trl.GRPOTrainer(environment_factory=...)` takes.

    Peers look at the same draft, and equal instructions draw the same picture: what differs between their rewards is
    what they said. A row's column `seed` (0 or more) asks for another draft of its prompt.

    Args:
        painter: who draws; shared by all rollouts.
        describe: a picture in words. None shows the picture itself and needs a vision-language model; a model that
            cannot see needs it.
        max_redraws: refinements of a rollout at most, 1 or more.
        prompt_key: the column with what is to be drawn; None takes the last user message.
        drafts_kept: drafts in memory, so that a group draws its own once.

    Raises:
        InputError: a number outside its range.
    """
    if max_redraws < 1 or drafts_kept < 1:
        raise InputError(f"max_redraws {max_redraws}, drafts_kept {drafts_kept}", hint="1 or more")
    drafts = _Drafts(painter, drafts_kept)
    return functools.partial(
        DrawingEnvironment,
        painter,
        drafts=drafts,
        describe=describe,
        max_redraws=max_redraws,
        prompt_key=prompt_key,
    )


class DrawingEnvironment:
    """One rollout's easel; made by `drawing_environment`. TRL offers its public methods but `reset` as tools."""

    def __init__(
        self,
        painter: Painter,
        *,
        drafts: _Drafts,
        describe: Describe | None,
        max_redraws: int,
        prompt_key: str | None,
    ) -> None:
        self._painter, self._drafts, self._describe = painter, drafts, describe
        self._max_redraws, self._prompt_key, self._seed = max_redraws, prompt_key, 0
        self.prompt = ""
        self.pictures: list[Image.Image] = []
        """The draft and every refinement, RGB."""
        self.instructions: list[str] = []
        """One for each refinement."""
        self.failure: Exception | None = None
        """What broke the painter; `as_trl_reward` stops the run for it."""

    def reset(self, **row: Any) -> str | list[dict[str, Any]]:
        """Start a rollout from the draft of a row and show it."""
        self.prompt = self._asked(row)
        self._seed = _seed(self.prompt, int(row.get("seed") or 0))
        self.pictures, self.instructions, self.failure = [self._drafts.of(self.prompt, self._seed)], [], None
        return self._show("\nThe draft: " if self._describe else "")

    def draw_again(self, instruction: str) -> str | list[dict[str, Any]]:
        """
        Change the picture by one edit instruction and look at what came of it.

        Args:
            instruction: What to change, in one sentence.

        Returns:
            The new picture.
        """
        if len(self.instructions) == self._max_redraws:
            raise InputError(
                f"the picture has been changed {self._max_redraws} times", hint="no further change is made"
            )
        seed = self._seed + len(self.pictures)
        try:
            picture = self._painter.redraw(self.pictures[-1], instruction, prompt=self.prompt, seed=seed)
        except InputError:  # what was said cannot be drawn: TRL tells the model
            raise
        except Exception as error:
            self.failure = error
            raise
        self.pictures.append(picture)
        self.instructions.append(instruction)
        return self._show("")

    def _asked(self, row: dict[str, Any]) -> str:
        if self._prompt_key is not None:
            if self._prompt_key not in row:
                raise InputError(f"the rows have no column '{self._prompt_key}'", hint=f"they have {sorted(row)}")
            return str(row[self._prompt_key])
        messages = row.get("prompt")
        users = [m["content"] for m in messages if m["role"] == "user"] if isinstance(messages, list) else []
        if not users or not isinstance(users[-1], str):
            raise InputError("the rows have no user message in plain words to draw", hint="name a column: prompt_key=")
        return str(users[-1])

    def _show(self, lead: str) -> str | list[dict[str, Any]]:
        picture = self.pictures[-1]
        if self._describe is not None:
            return lead + self._describe(picture)
        return [{"type": "image", "image": picture}]


class _Drafts:
    """The drafts drawn last."""

    def __init__(self, painter: Painter, kept: int) -> None:
        self._painter, self._kept = painter, kept
        self._drawn: OrderedDict[tuple[str, int], Image.Image] = OrderedDict()

    def of(self, prompt: str, seed: int) -> Image.Image:
        key = prompt, seed
        if key not in self._drawn:
            self._drawn[key] = self._painter.draft(prompt, seed=seed)
        self._drawn.move_to_end(key)
        while len(self._drawn) > self._kept:
            self._drawn.popitem(last=False)
        return self._drawn[key]


def _seed(prompt: str, number: int) -> int:
    """Another noise for every prompt, the same in every process."""
    return int.from_bytes(hashlib.sha256(f"{number}:{prompt}".encode()).digest()[:6])


def _picture(image: Any) -> Image.Image:
    from r3_rl.scoring.batch import to_uint8

    return Image.fromarray(to_uint8(image))
