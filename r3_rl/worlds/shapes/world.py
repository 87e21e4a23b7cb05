"""The shapes world behind the doors of `worlds.base.World`. Its scenes are tuples of objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from r3_rl.recipe.pretraining import OF_THE_WORLD
from r3_rl.types import Prompt, Verdict
from r3_rl.worlds.base import Batches, Demo, Edited, Question, Seed, Tags, World
from r3_rl.worlds.shapes import data, drawing, inspector, judging, language, prompts, questions, reading, shipped
from r3_rl.worlds.shapes.scene import Scene

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from r3_rl.recipe.pretraining import PretrainSection

ROUGH_SHARE = 0.25
"""Share of wrong scenes with malformed objects among the errors."""


class ShapesWorld:
    """Coloured shapes on a grid of nine cells; see README.md."""

    name = "shapes"
    image_size = drawing.IMAGE_SIZE
    background = drawing.BACKGROUND
    tags: tuple[str, ...] = prompts.TAGS
    harder_tags: tuple[str, ...] = prompts.HARD_TAGS
    question_kinds: ClassVar[Mapping[str, str]] = questions.KINDS_IN_WORDS
    pretrain_keys: tuple[str, ...] = OF_THE_WORLD
    bench = "loop"
    base_sizes: ClassVar[Mapping[str, int]] = {
        "num_prompts": 1000,
        "num_fixed": 1000,
        "num_right": 500,
        "num_questions": 1000,
        "num_pairs": 500,
        "num_plans": 1000,
        "num_edits": 1000,
    }
    # sets that two idle cores measure in about 25 s each time
    demo = Demo(
        recipe="shapes_r3",
        max_steps=160,
        sizes={
            "num_prompts": 320,
            "num_fixed": 300,
            "num_right": 160,
            "num_questions": 300,
            "num_swap": 150,
            "num_pairs": 120,
            "num_plans": 160,
            "num_edits": 160,
            "num_others": 100,
        },
    )

    def prompts(self, count: int, *, split: str, tags: Tags = None, seed: Seed) -> list[Prompt]:
        """Prompts in GenEval's metadata schema."""
        return prompts.sample_prompts(count, split=split, tags=tags, seed=seed)

    def read_prompt(self, text: str) -> Prompt | None:
        """Objects joined by commas and "and", or two with a relation."""
        return reading.read_prompt(text)

    def tokenizer(self) -> Tokenizer:
        """One token a word."""
        return language.build_tokenizer()

    def examples(self, settings: PretrainSection, *, seed: int) -> Batches:
        """Examples of every kind, partly wrong if the settings say so."""
        from r3_rl.worlds.shapes.pretraining import batches

        return batches(settings, seed=seed)

    def plan_text(self, scene: Scene) -> str:
        """Objects in the prompt's order, between thinking marks."""
        return language.plan_text(scene)

    def read_plan(self, text: str) -> Scene | None:
        """None also if two objects are in one cell."""
        return _scene(language.parse_plan(text))

    def read_listing(self, text: str) -> Scene | None:
        """Malformed objects are listed as such."""
        return _scene(language.parse_listing(text))

    def follow(self, scene: Scene, instruction: str) -> Scene | None:
        """One of five edits."""
        return language.apply_instruction(scene, instruction)

    def scene(self, prompt: Prompt, rng: np.random.Generator) -> Scene:
        """Objects in random cells."""
        return prompts.sample_scene(prompt, rng)

    def wrong_scene(self, prompt: Prompt, rng: np.random.Generator) -> Scene:
        """One to three errors."""
        return data.wrong_scene(prompts.sample_scene(prompt, rng), prompt, rng, rough_share=ROUGH_SHARE)

    def near_miss(self, scene: Scene, prompt: Prompt, rng: np.random.Generator) -> Scene:
        """One random edit."""
        return data.near_miss(scene, prompt, rng)

    def draw(self, scenes: Sequence[Scene]) -> np.ndarray:
        """Anti-aliased."""
        return drawing.render(scenes)

    def roughen(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Pixel noise and slight blur."""
        return drawing.roughen_pixels(images, rng)

    def inspect(self, images: np.ndarray) -> list[Scene]:
        """Objects in reading order, malformed ones marked."""
        return inspector.inspect(images)

    def same(self, one: Scene, other: Scene) -> bool:
        """Colours, shapes, cells, and which are malformed."""
        return inspector.same_objects(one, other)

    def judge(self, scene: Scene, prompt: Prompt) -> Verdict:
        """1 for exactly what is asked for, else 0; `partial` says how near it is."""
        found = judging.judge(scene, prompt)
        scores = {"strict": float(found.strict), "partial": found.partial}
        return Verdict(total=scores["strict"], scores=scores, words=found.words)

    def edits_needed(self, scene: Scene, prompt: Prompt) -> int:
        """Of the smallest set of edits."""
        return judging.edits_needed(scene, prompt)

    def edits(self, count: int, *, seed: Seed) -> list[Edited]:
        """Every kind of edit, on clean and on malformed objects."""
        return data.ShapesStream(seed=seed).edits(count)

    def questions(self, count: int, *, seed: Seed) -> list[Question]:
        """Of every kind."""
        return data.ShapesStream(seed=seed).questions(count)

    def ask(self, image: np.ndarray, scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
        """None if an object is malformed."""
        if any(o.rough for o in scene):
            return None
        return data.posed(questions.ask(scene, kind, rng), image, scene)

    def weights_folder(self) -> Path:
        """The embedded model."""
        return shipped.weights_folder()

    def adapter_folder(self) -> Path:
        """An adapter of the embedded model, trained with R3."""
        return shipped.adapter_folder()


def _scene(objects: Sequence[object] | None) -> Scene | None:
    return None if objects is None else tuple(objects)  # type: ignore[arg-type]


WORLD: World[Scene] = ShapesWorld()
