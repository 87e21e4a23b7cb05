"""Endless supervised data of the shapes world, from a seed; all images of a call are rendered at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from r3_rl.types import Prompt
from r3_rl.worlds.base import Edited, Question, Seed, Tags
from r3_rl.worlds.shapes.drawing import render, roughen_pixels
from r3_rl.worlds.shapes.judging import edits_needed, useful_edits
from r3_rl.worlds.shapes.language import answer_text, critique_text, instruction_text, plan_text, question_text
from r3_rl.worlds.shapes.prompts import sample_prompts, sample_scene
from r3_rl.worlds.shapes.questions import QUESTION_KINDS, Asked, ask
from r3_rl.worlds.shapes.scene import Edit, Scene, apply_edit, pick, random_edit, random_scene, roughen


class Drawn(NamedTuple):
    """Text to image."""

    prompt: str
    plan: str
    image: np.ndarray
    """float32 [3, 36, 36] in [0, 1], as all images here."""


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

    def __init__(self, *, seed: Seed, split: str = "train", tags: Tags = None) -> None:
        """`tags` are the kinds of prompts, with weights if a mapping; each method can be given others."""
        self.rng = np.random.default_rng(seed)
        self.split = split
        self.tags = tags

    def text_to_image(
        self, n: int, *, plan_noise: float = 0.0, plan_errors: int = 4, image_noise: float = 0.0, tags: Tags = None
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
        rng, texts, plans, scenes = self.rng, [], [], []
        for prompt in sample_prompts(n, split=self.split, tags=tags or self.tags, seed=rng):
            scene = sample_scene(prompt, rng)
            if rng.random() < plan_noise:
                scene = corrupt(scene, prompt, rng, num_edits=1, num_wrong=1 + int(rng.random() * plan_errors))
            texts.append(prompt.text)
            plans.append(plan_text(scene))
            scenes.append(_edited(scene, rng) if rng.random() < image_noise else scene)
        return [Drawn(*sample) for sample in zip(texts, plans, render(scenes), strict=True)]

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
        rng, sources, instructions, targets = self.rng, [], [], []
        for _ in range(n):
            scene = random_scene(int(rng.random() * 7), rng)
            if scene and rng.random() < rough_share:
                scene = _worn(scene, rng)
            rough = [o for o in scene if o.rough]
            if rough and rng.random() < 0.5:
                o = pick(rough, rng)
                edit = Edit("turn", "", o.shape, o.row, o.col, to_shape=o.shape)
                if o.rough == "tinted":
                    edit = edit._replace(kind="change", to_color=o.color, to_shape="")
            else:
                edit = random_edit(scene, rng)
            target = apply_edit(scene, edit, rng)
            assert target is not None
            if departing_share and rng.random() < departing_share:
                target = _edited(target, rng)
            sources.append(scene)
            instructions.append(instruction_text(edit))
            targets.append(target)
        pixels = render(sources + targets)
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
        rng, scenes, prompts, texts = self.rng, [], [], []
        for prompt in sample_prompts(n, split=self.split, tags=tags or self.tags, seed=rng):
            scene = sample_scene(prompt, rng)
            if rng.random() < wrong_share:
                scene = wrong_scene(scene, prompt, rng, rough_share=rough_share)
            edits = useful_edits(scene, prompt, rng)
            scenes.append(scene)
            prompts.append(prompt.text)
            said = edits[0] if edits else None
            if edits and useless_share and rng.random() < useless_share:
                said = None if rng.random() < 0.5 else random_edit(scene, rng)
            texts.append(critique_text(scene, said))
        images = roughen_pixels(render(scenes), rng, max_noise=max_noise)
        return [Critiqued(*sample) for sample in zip(images, prompts, texts, strict=True)]

    def questions(self, n: int, *, max_noise: float = 0.04, kinds: Sequence[str] = QUESTION_KINDS) -> list[Question]:
        """Questions about random scenes."""
        rng = self.rng
        scenes = [random_scene(int(rng.random() * 7), rng) for _ in range(n)]
        asked = [ask(scene, pick(kinds, rng), rng) for scene in scenes]
        images = roughen_pixels(render(scenes), rng, max_noise=max_noise)
        return [posed(*row) for row in zip(asked, images, scenes, strict=True)]


def _edited(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene after one random edit."""
    after = apply_edit(scene, random_edit(scene, rng), rng)
    assert after is not None
    return after


def _exchanged(scene: Scene, rng: np.random.Generator) -> Scene:
    """Two objects exchange their colours, shapes or cells: the error of binding that drafts are full of."""
    i, j = (int(k) for k in rng.permutation(len(scene))[:2])
    names = pick((("color",), ("shape",), ("row", "col")), rng)
    objects = list(scene)
    objects[i] = scene[i]._replace(**{name: getattr(scene[j], name) for name in names})
    objects[j] = scene[j]._replace(**{name: getattr(scene[i], name) for name in names})
    return tuple(objects)


def _worn(scene: Scene, rng: np.random.Generator) -> Scene:
    """One malformed object, sometimes two."""
    for _ in range(1 + (rng.random() < 0.25)):
        scene = roughen(scene, int(rng.random() * len(scene)), rng)
    return scene


def corrupt(scene: Scene, prompt: Prompt, rng: np.random.Generator, *, num_edits: int, num_wrong: int = 1) -> Scene:
    """Edit a scene at random until `num_wrong` edits lead back to the prompt: at least `num_edits` times, one in four
    an exchange."""
    done = 0
    while done < num_edits or edits_needed(scene, prompt) < num_wrong:
        scene = _exchanged(scene, rng) if len(scene) > 1 and rng.random() < 0.25 else _edited(scene, rng)
        done += 1
    return scene


def wrong_scene(scene: Scene, prompt: Prompt, rng: np.random.Generator, *, rough_share: float) -> Scene:
    """A scene with one to three errors; in `rough_share` of the cases malformed objects are among them."""
    num_errors = 1 + int(rng.random() * 3)
    if rng.random() < rough_share:
        if num_errors > 1:
            scene = corrupt(scene, prompt, rng, num_edits=num_errors - 1)
        return _worn(scene or _edited(scene, rng), rng)
    return corrupt(scene, prompt, rng, num_edits=num_errors)


def near_miss(scene: Scene, prompt: Prompt, rng: np.random.Generator) -> Scene:
    """Change a scene that satisfies the prompt by one random edit so that one edit is needed to satisfy it again.

    >>> rng = np.random.default_rng(0)
    >>> prompt = sample_prompts(1, seed=0)[0]
    >>> edits_needed(near_miss(sample_scene(prompt, rng), prompt, rng), prompt)
    1
    """
    while True:
        after = apply_edit(scene, random_edit(scene, rng), rng)
        if after is not None and edits_needed(after, prompt) == 1:
            return after


def posed(question: Asked, image: np.ndarray, scene: Scene) -> Question:
    """The question about an image that shows the scene."""
    return Question(
        image=image,
        words=question.text,
        text=question_text(question.text),
        answer=question.answer,
        reply=answer_text(scene, question.answer),
        kind=question.kind,
    )
