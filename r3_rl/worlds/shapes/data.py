"""Endless supervised data of a world of shapes, from a seed; all images of a call are rendered at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from r3_rl.recipe.base import default
from r3_rl.recipe.pretraining import PretrainSection
from r3_rl.types import Prompt
from r3_rl.worlds.base import Edited, Question, Seed, Tags
from r3_rl.worlds.shapes.board import NINE, Board
from r3_rl.worlds.shapes.drawing import render, roughen_pixels
from r3_rl.worlds.shapes.judging import edits_needed, useful_edits
from r3_rl.worlds.shapes.language import answer_text, critique_text, instruction_text, plan_text, question_text
from r3_rl.worlds.shapes.prompts import sample_prompts, sample_scene
from r3_rl.worlds.shapes.questions import Asked, ask, kinds_in_words
from r3_rl.worlds.shapes.scene import Edit, Scene, apply_edit, random_edit, random_scene, roughen
from r3_rl.worlds.shapes.terms import pick

PLAN_ERRORS: int = default(PretrainSection, "plan_errors")


class Drawn(NamedTuple):
    """Text to image."""

    prompt: str
    plan: str
    image: np.ndarray
    """float32 [3, H, W] in [0, 1], as all images here."""


class Critiqued(NamedTuple):
    """What to say about an image that was drawn for a prompt."""

    image: np.ndarray
    prompt: str
    text: str


class ShapesStream:
    """Samples for pretraining, reproducible from `seed` and the order of calls.

    >>> stream = ShapesStream(seed=0)
    >>> stream.text_to_image(2)[0].image.shape
    (3, 36, 36)
    """

    def __init__(self, *, seed: Seed, split: str = "train", tags: Tags = None, board: Board = NINE) -> None:
        """`tags` are the kinds of prompts, with weights if a mapping; each method can be given others."""
        self.board = board
        self.rng = np.random.default_rng(seed)
        self.split = split
        self.tags = tags

    def text_to_image(
        self,
        n: int,
        *,
        plan_noise: float = 0.0,
        plan_errors: int = PLAN_ERRORS,
        image_noise: float = 0.0,
        tags: Tags = None,
    ) -> list[Drawn]:
        """Prompt, plan, image; with `plan_noise` or `image_noise` partly wrong on purpose, as for the first base.

        Args:
            n: how many.
            plan_noise: share whose plan (and image with it) contradicts the prompt.
            plan_errors: most edits that a wrong plan is away from a right one, each number as likely. From three on two
                rounds cannot repair it, so that there is something to win for the plan itself.
            image_noise: share whose image departs from its plan by one random edit.
            tags: kinds of prompts, with weights if a mapping.
        """
        rng, board, texts, plans, scenes = self.rng, self.board, [], [], []
        for prompt in sample_prompts(n, split=self.split, tags=tags or self.tags, seed=rng, board=board):
            scene = sample_scene(prompt, rng, board)
            if rng.random() < plan_noise:
                num_wrong = 1 + int(rng.random() * plan_errors)
                scene = corrupt(scene, prompt, rng, num_edits=1, num_wrong=num_wrong, board=board)
            texts.append(prompt.text)
            plans.append(plan_text(scene, board))
            scenes.append(_edited(scene, rng, board) if rng.random() < image_noise else scene)
        return [Drawn(*sample) for sample in zip(texts, plans, render(scenes, board), strict=True)]

    def edits(
        self, n: int, *, rough_share: float = 0.3, max_noise: float = 0.04, departing_share: float = 0.0
    ) -> list[Edited]:
        """Source, instruction, target. What the instruction does not name stays as it is, pixel noise apart.

        Args:
            n: how many.
            rough_share: share of sources with one or two malformed objects; half of these have one repaired.
            max_noise: strongest pixel noise of a source.
            departing_share: share of targets with one more random edit that nobody asked for.
        """
        rng, board, sources, instructions, targets = self.rng, self.board, [], [], []
        for _ in range(n):
            scene = random_scene(board.any_number(rng), rng, board)
            if scene and rng.random() < rough_share:
                scene = _worn(scene, rng)
            rough = [o for o in scene if o.rough]
            if rough and rng.random() < 0.5:
                o = pick(rough, rng)
                edit = Edit("turn", "", o.shape, o.row, o.col, to_shape=o.shape)
                if o.rough == "tinted":
                    edit = edit._replace(kind="change", to_color=o.color, to_shape="")
            else:
                edit = random_edit(scene, rng, board)
            target = apply_edit(scene, edit, rng, board)
            assert target is not None
            if departing_share and rng.random() < departing_share:
                target = _edited(target, rng, board)
            sources.append(scene)
            instructions.append(instruction_text(edit, board))
            targets.append(target)
        pixels = render(sources + targets, board)
        return [
            Edited(source=source, instruction=instruction, target=target)
            for source, instruction, target in zip(
                roughen_pixels(pixels[:n], rng, max_noise=max_noise), instructions, pixels[n:], strict=True
            )
        ]

    def critiques(
        self,
        n: int,
        *,
        wrong_share: float = 0.5,
        rough_share: float = 0.25,
        useless_share: float = 0.0,
        max_noise: float = 0.04,
        tags: Tags = None,
    ) -> list[Critiqued]:
        """Image, prompt, and what is seen followed by a useful edit instruction, or by "no further edit needed".

        Args:
            n: how many.
            wrong_share: share of images with one to three errors.
            rough_share: share of the wrong images with malformed objects among the errors.
            useless_share: share of the critiques of wrong images that stop, or ask for a random edit, half each.
            max_noise: strongest pixel noise.
            tags: kinds of prompts, with weights if a mapping.
        """
        rng, board, scenes, prompts, texts = self.rng, self.board, [], [], []
        for prompt in sample_prompts(n, split=self.split, tags=tags or self.tags, seed=rng, board=board):
            scene = sample_scene(prompt, rng, board)
            if rng.random() < wrong_share:
                scene = wrong_scene(scene, prompt, rng, rough_share=rough_share, board=board)
            edits = useful_edits(scene, prompt, rng, board)
            scenes.append(scene)
            prompts.append(prompt.text)
            said = edits[0] if edits else None
            if edits and useless_share and rng.random() < useless_share:
                said = None if rng.random() < 0.5 else random_edit(scene, rng, board)
            texts.append(critique_text(scene, said, board))
        images = roughen_pixels(render(scenes, board), rng, max_noise=max_noise)
        return [Critiqued(*sample) for sample in zip(images, prompts, texts, strict=True)]

    def questions(self, n: int, *, max_noise: float = 0.04, kinds: Sequence[str] = ()) -> list[Question]:
        """Questions about random scenes; of every kind if none is given."""
        rng, board = self.rng, self.board
        kinds = kinds or tuple(kinds_in_words(board))
        scenes = [random_scene(board.any_number(rng), rng, board) for _ in range(n)]
        asked = [ask(scene, pick(kinds, rng), rng, board) for scene in scenes]
        images = roughen_pixels(render(scenes, board), rng, max_noise=max_noise)
        return [posed(*row, board) for row in zip(asked, images, scenes, strict=True)]


def _edited(scene: Scene, rng: np.random.Generator, board: Board) -> Scene:
    """The scene after one random edit."""
    after = apply_edit(scene, random_edit(scene, rng, board), rng, board)
    assert after is not None
    return after


def _exchanged(scene: Scene, rng: np.random.Generator, board: Board) -> Scene:
    """Two objects exchange their colours, shapes, cells or sizes: the error of binding that drafts are full of."""
    i, j = (int(k) for k in rng.permutation(len(scene))[:2])
    names = pick((("color",), ("shape",), ("row", "col"), ("size", "radius"))[: 3 + board.is_sized], rng)
    objects = list(scene)
    objects[i] = scene[i]._replace(**{name: getattr(scene[j], name) for name in names})
    objects[j] = scene[j]._replace(**{name: getattr(scene[i], name) for name in names})
    return tuple(objects)


def _worn(scene: Scene, rng: np.random.Generator) -> Scene:
    """One malformed object, sometimes two."""
    for _ in range(1 + (rng.random() < 0.25)):
        scene = roughen(scene, int(rng.random() * len(scene)), rng)
    return scene


def corrupt(
    scene: Scene,
    prompt: Prompt,
    rng: np.random.Generator,
    *,
    num_edits: int,
    num_wrong: int = 1,
    board: Board = NINE,
) -> Scene:
    """Edit a scene at random until `num_wrong` edits lead back to the prompt: at least `num_edits` times, one in four
    an exchange."""
    done = 0
    while done < num_edits or edits_needed(scene, prompt, board) < num_wrong:
        exchange = len(scene) > 1 and rng.random() < 0.25
        scene = _exchanged(scene, rng, board) if exchange else _edited(scene, rng, board)
        done += 1
    return scene


def wrong_scene(
    scene: Scene, prompt: Prompt, rng: np.random.Generator, *, rough_share: float, board: Board = NINE
) -> Scene:
    """A scene with one to three errors; in `rough_share` of the cases malformed objects are among them."""
    num_errors = 1 + int(rng.random() * 3)
    if rng.random() < rough_share:
        if num_errors > 1:
            scene = corrupt(scene, prompt, rng, num_edits=num_errors - 1, board=board)
        return _worn(scene or _edited(scene, rng, board), rng)
    return corrupt(scene, prompt, rng, num_edits=num_errors, board=board)


def near_miss(scene: Scene, prompt: Prompt, rng: np.random.Generator, board: Board = NINE) -> Scene:
    """Change a scene that satisfies the prompt by one random edit so that one edit is needed to satisfy it again.

    >>> rng = np.random.default_rng(0)
    >>> prompt = sample_prompts(1, seed=0)[0]
    >>> edits_needed(near_miss(sample_scene(prompt, rng), prompt, rng), prompt)
    1
    """
    while True:
        after = apply_edit(scene, random_edit(scene, rng, board), rng, board)
        if after is not None and edits_needed(after, prompt, board) == 1:
            return after


def posed(question: Asked, image: np.ndarray, scene: Scene, board: Board = NINE) -> Question:
    """The question about an image that shows the scene."""
    listed = scene if board.answers_list_all else question.about
    return Question(
        image=image,
        words=question.text,
        text=question_text(question.text),
        answer=question.answer,
        reply=answer_text(listed, question.answer, board),
        kind=question.kind,
    )
