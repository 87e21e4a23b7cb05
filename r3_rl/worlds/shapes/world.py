"""A world of shapes behind the doors of `worlds.base.World`, and the embedded one. Scenes are tuples of objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from r3_rl.errors import CheckpointError
from r3_rl.recipe.pretraining import OF_THE_WORLD
from r3_rl.types import Prompt, Verdict
from r3_rl.worlds.base import Batches, Demo, Edited, Question, Seed, Squares, Tags, World
from r3_rl.worlds.shapes import (
    data,
    drawing,
    inspector,
    judging,
    language,
    prompts,
    questions,
    reading,
    shipped,
    squares,
)
from r3_rl.worlds.shapes.board import NINE, Board
from r3_rl.worlds.shapes.scene import Scene

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from r3_rl.recipe.pretraining import PretrainSection

ROUGH_SHARE = 0.25
"""Share of wrong scenes with malformed objects among the errors."""
BASE_SIZES: Mapping[str, int] = {
    "num_prompts": 1000,
    "num_fixed": 1000,
    "num_right": 500,
    "num_questions": 1000,
    "num_pairs": 500,
    "num_plans": 1000,
    "num_edits": 1000,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class ShapesWorld:
    """Coloured shapes on a board; see README.md."""

    board: Board
    demo: Demo | None
    place: Path
    """Folder with what ships with the world."""
    bases: Mapping[str, str]
    """The models that ship with it: the name, also of the folder in `place`, and the recipe that makes it."""
    base_sizes: Mapping[str, int]
    rollout: Mapping[str, Any]
    second_inspector: bool = False
    """Whether one ships with it."""
    background: ClassVar[float] = drawing.BACKGROUND
    pretrain_keys: ClassVar[tuple[str, ...]] = OF_THE_WORLD
    bench: ClassVar[str] = "loop"

    @property
    def name(self) -> str:
        """The board's."""
        return self.board.name

    @property
    def image_size(self) -> int:
        """Twelve pixels a cell."""
        return self.board.image_size

    @property
    def tags(self) -> tuple[str, ...]:
        """The board's kinds of prompts."""
        return tuple(self.board.kinds)

    @property
    def harder_tags(self) -> tuple[str, ...]:
        """Those that ask for several things at once."""
        return self.board.harder_tags

    @property
    def question_kinds(self) -> Mapping[str, str]:
        """Five, and one more where objects have sizes."""
        return questions.kinds_in_words(self.board)

    def prompts(self, count: int, *, split: str, tags: Tags = None, seed: Seed) -> list[Prompt]:
        """Prompts in GenEval's metadata schema."""
        return prompts.sample_prompts(count, split=split, tags=tags, seed=seed, board=self.board)

    def read_prompt(self, text: str) -> Prompt | None:
        """Objects joined by commas and "and", or two with a relation."""
        return reading.read_prompt(text, self.board)

    def tokenizer(self) -> Tokenizer:
        """One token a word."""
        return language.build_tokenizer(self.board)

    def examples(self, settings: PretrainSection, *, seed: int) -> Batches:
        """Examples of every kind, partly wrong if the settings say so."""
        from r3_rl.worlds.shapes.pretraining import batches

        return batches(settings, self.board, seed=seed)

    def plan_text(self, scene: Scene) -> str:
        """Objects in the prompt's order, between thinking marks."""
        return language.plan_text(scene, self.board)

    def read_plan(self, text: str) -> Scene | None:
        """None also if two objects are in one cell."""
        return _scene(language.parse_plan(text, self.board))

    def read_listing(self, text: str) -> Scene | None:
        """Malformed objects are listed as such."""
        return _scene(language.parse_listing(text, self.board))

    def follow(self, scene: Scene, instruction: str) -> Scene | None:
        """One of the edits that the board has: five, and one more where objects have sizes."""
        return language.apply_instruction(scene, instruction, self.board)

    def scene(self, prompt: Prompt, rng: np.random.Generator) -> Scene:
        """Objects in random cells."""
        return prompts.sample_scene(prompt, rng, self.board)

    def wrong_scene(self, prompt: Prompt, rng: np.random.Generator) -> Scene:
        """One to three errors."""
        scene = prompts.sample_scene(prompt, rng, self.board)
        return data.wrong_scene(scene, prompt, rng, rough_share=ROUGH_SHARE, board=self.board)

    def near_miss(self, scene: Scene, prompt: Prompt, rng: np.random.Generator) -> Scene:
        """One random edit."""
        return data.near_miss(scene, prompt, rng, self.board)

    def draw(self, scenes: Sequence[Scene]) -> np.ndarray:
        """Anti-aliased."""
        return drawing.render(scenes, self.board)

    def roughen(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Pixel noise and slight blur."""
        return drawing.roughen_pixels(images, rng)

    def squares(self, scenes: Sequence[Scene]) -> Squares:
        """Of each cell: whether something is in it, its colour, shape, size, and whether it is malformed."""
        return squares.squares(scenes, self.board)

    def inspect(self, images: np.ndarray) -> list[Scene]:
        """Objects in reading order, malformed ones marked."""
        return inspector.inspect(images, self.board)

    def inspect_again(self, images: np.ndarray) -> list[Scene]:
        """A network that learned to read, where one ships with the board."""
        if not self.second_inspector:
            return []
        from r3_rl.worlds.shapes import second_inspector

        return second_inspector.inspect(images, self.board)

    def same(self, one: Scene, other: Scene) -> bool:
        """Colours, shapes, sizes, cells, and which are malformed."""
        return inspector.same_objects(one, other)

    def judge(self, scene: Scene, prompt: Prompt) -> Verdict:
        """1 for exactly what is asked for, else 0; `partial` says how near it is."""
        found = judging.judge(scene, prompt, self.board)
        scores = {"strict": float(found.strict), "partial": found.partial}
        return Verdict(total=scores["strict"], scores=scores, words=found.words)

    def edits_needed(self, scene: Scene, prompt: Prompt) -> int:
        """Of the smallest set of edits."""
        return judging.edits_needed(scene, prompt, self.board)

    def repair(self, scene: Scene, prompt: Prompt, rng: np.random.Generator) -> str | None:
        """The first edit of a smallest set of them."""
        edits = judging.useful_edits(scene, prompt, rng, self.board)
        return language.instruction_text(edits[0], self.board) if edits else None

    def edits(self, count: int, *, seed: Seed) -> list[Edited]:
        """Every kind of edit, on clean and on malformed objects."""
        return data.ShapesStream(seed=seed, board=self.board).edits(count)

    def questions(self, count: int, *, seed: Seed) -> list[Question]:
        """Of every kind."""
        return data.ShapesStream(seed=seed, board=self.board).questions(count)

    def ask(self, image: np.ndarray, scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
        """None if an object is malformed."""
        if any(o.rough for o in scene):
            return None
        return data.posed(questions.ask(scene, kind, rng, self.board), image, scene, self.board)

    def weights_folder(self, base: str | None = None) -> Path:
        """The first of `bases` without a name."""
        name = base or next(iter(self.bases))
        if name not in self.bases:
            raise CheckpointError(
                f"no model '{name}' ships with the world '{self.name}'", hint=f"use one of {', '.join(self.bases)}"
            )
        return shipped.weights_folder(self.place, base=name, recipe=self.bases[name])

    def adapter_folder(self) -> Path:
        """An adapter of the embedded model, trained with R3."""
        return shipped.adapter_folder(self.place, world=self.name)


def _scene(objects: Sequence[object] | None) -> Scene | None:
    return None if objects is None else tuple(objects)  # type: ignore[arg-type]


WORLD: World[Scene] = ShapesWorld(
    board=NINE,
    # sets that two idle cores measure in about 25 s each time
    demo=Demo(
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
    ),
    place=shipped.PLACE,
    bases={"weights": "shapes_pretrain"},
    base_sizes=BASE_SIZES,
    rollout={},  # the recipe's defaults are this board's
)
