"""What a world is: prompts, what their images may show, and an inspector that reads images exactly; found by name.

A *scene* is what an image shows, in whatever form the world likes: nobody else looks into one. Images are float32
[3, H, W] in [0, 1], H = W = `image_size`. Nothing here and nothing in a world's own module loads torch when it is
imported: checking a recipe asks the world too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from r3_rl import registered
from r3_rl.errors import InputError
from r3_rl.types import Prompt, Verdict

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from r3_rl.policy.base import Example
    from r3_rl.recipe.pretraining import PretrainSection

Tags = Sequence[str] | Mapping[str, float] | None
"""Kinds of prompts, with weights if a mapping; None is every kind equally often."""
Seed = int | np.random.Generator
"""A number, or a generator that is drawn from."""
Batches = Callable[[str, int], "list[Example]"]
"""Kind of example, a key of `pretrain.batch`, and how many of them -> the next ones."""
Scene = TypeVar("Scene")


@dataclass(frozen=True, kw_only=True, eq=False)
class Edited:
    """An image, one instruction, and the image after it."""

    source: np.ndarray
    """float32 [3, H, W] in [0, 1], as `target`."""
    instruction: str
    target: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """A question about an image, and what its answer should be."""

    image: np.ndarray
    """float32 [3, H, W] in [0, 1]."""
    words: str
    """What is asked; tells questions of a set apart."""
    text: str
    """As the policy reads it."""
    answer: str
    """The one right word."""
    reply: str
    """What the policy should say: its thought, then the answer."""
    kind: str
    """One of the world's `question_kinds`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Squares:
    """What is in each square of images, for teaching an understanding tower to see."""

    labels: np.ndarray
    """int64 [n, squares in reading order, fields]: the number of the word that a field says; -1 says nothing."""
    sizes: tuple[int, ...]
    """Words of each field."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What `r3 demo` runs in a world."""

    recipe: str
    """Name or file of the recipe."""
    max_steps: int
    """About what two idle cores train in six minutes in addition to measuring."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Items of the bench's sets, by the names that the bench gives them."""


class World(Protocol[Scene]):
    """A world, as the rest of the toolkit sees it. A door that a world does not have returns nothing: no questions, no
    kinds of them. What is measured on them is then left out."""

    @property
    def name(self) -> str:
        """As in `data.kind` of a recipe."""
        ...

    @property
    def image_size(self) -> int:
        """Height and width of its images in pixels."""
        ...

    @property
    def background(self) -> float:
        """The value in [0, 1] of an empty pixel: what a model trained from nothing takes as zero."""
        ...

    @property
    def tags(self) -> tuple[str, ...]:
        """Kinds of prompts: the column `tag` of each."""
        ...

    @property
    def harder_tags(self) -> tuple[str, ...]:
        """Those whose figures are also told apart, such as prompts that ask for several things at once."""
        ...

    @property
    def question_kinds(self) -> Mapping[str, str]:
        """Kinds of questions about an image, each with what tables call it, such as `how many`."""
        ...

    @property
    def bench(self) -> str:
        """The name of what is measured before and after training, in `r3_rl.benches`."""
        ...

    @property
    def rollout(self) -> Mapping[str, Any]:
        """Section `rollout` of a recipe, as far as its images and texts ask for it: how a model that speaks its words
        draws and writes where no recipe says so."""
        ...

    @property
    def base_sizes(self) -> Mapping[str, int]:
        """Items of the bench's sets when a pretrained model is measured."""
        ...

    @property
    def pretrain_keys(self) -> tuple[str, ...]:
        """Those of `recipe.pretraining.OF_THE_WORLD` that its examples follow. A recipe that sets others is
        refused."""
        ...

    @property
    def demo(self) -> Demo | None:
        """What `r3 demo` runs; None if the world has none."""
        ...

    # prompts and texts

    def prompts(self, count: int, *, split: str, tags: Tags = None, seed: Seed) -> list[Prompt]:
        """Draw `count` prompts with replacement from a split, `train` or `held_out`. Their columns hold everything
        that a verdict needs."""
        ...

    def read_prompt(self, text: str) -> Prompt | None:
        """Return what a person typed as a prompt with its columns; None if it is not a request that can be judged."""
        ...

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer of a model of this world; its vocabulary is the world's alone."""
        ...

    def examples(self, settings: PretrainSection, *, seed: int) -> Batches:
        """Return the source of supervised examples of a leg of pretraining."""
        ...

    def plan_text(self, scene: Scene) -> str:
        """Return the plan that leads to a scene."""
        ...

    def read_plan(self, text: str) -> Scene | None:
        """Return the scene of a plan; None if it is malformed."""
        ...

    def read_listing(self, text: str) -> Scene | None:
        """Return the scene that the thought of a critique lists; None if it is not a listing."""
        ...

    def follow(self, scene: Scene, instruction: str) -> Scene | None:
        """Return the scene after an instruction; None if the words are not one or do not fit the scene."""
        ...

    # scenes and images

    def scene(self, prompt: Prompt, rng: np.random.Generator) -> Scene:
        """Return a random scene that satisfies the prompt."""
        ...

    def wrong_scene(self, prompt: Prompt, rng: np.random.Generator) -> Scene:
        """Return a random scene that a draft of the prompt might show and that does not satisfy it."""
        ...

    def near_miss(self, scene: Scene, prompt: Prompt, rng: np.random.Generator) -> Scene:
        """Return a scene one edit away from one that satisfies the prompt, and from what the prompt asks for."""
        ...

    def draw(self, scenes: Sequence[Scene]) -> np.ndarray:
        """Return the exact images of scenes, float32 [n, 3, H, W] in [0, 1]."""
        ...

    def roughen(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return exact images with the flaws that a model's images have and that a verdict overlooks."""
        ...

    def squares(self, scenes: Sequence[Scene]) -> Squares | None:
        """Return what the squares of scenes' images hold; None where images are not made of squares."""
        ...

    def inspect(self, images: np.ndarray) -> list[Scene]:
        """Return what images [n, 3, H, W] show, from their pixels alone."""
        ...

    def inspect_again(self, images: np.ndarray) -> list[Scene]:
        """Return what the same images show to a second inspector that no reward comes from, so that what a policy found
        in the first one does not count; nothing if there is none."""
        ...

    def same(self, one: Scene, other: Scene) -> bool:
        """Whether two scenes look the same to the inspector."""
        ...

    def judge(self, scene: Scene, prompt: Prompt) -> Verdict:
        """Return the verdict on an image that shows the scene: total 1 if it is right, else less; with words."""
        ...

    def edits_needed(self, scene: Scene, prompt: Prompt) -> int:
        """Return how many edits lead from the scene to one that satisfies the prompt; 0 if and only if it is right."""
        ...

    def repair(self, scene: Scene, prompt: Prompt, rng: np.random.Generator) -> str | None:
        """Return an instruction that leaves fewer edits to a scene which satisfies the prompt; None if it is right, or
        if nothing helps. `rng` chooses what the prompt leaves free."""
        ...

    def edits(self, count: int, *, seed: Seed) -> list[Edited]:
        """Return random true edits."""
        ...

    def questions(self, count: int, *, seed: Seed) -> list[Question]:
        """Return questions about random images."""
        ...

    def ask(self, image: np.ndarray, scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
        """Return a question about an image that shows the scene; None if no answer is sure."""
        ...

    # what ships with the world

    def weights_folder(self, base: str | None = None) -> Path:
        """Return the folder of a model that ships with the world, by its name if it has several, else of the first;
        raise CheckpointError if there is none."""
        ...

    def adapter_folder(self) -> Path:
        """Return the folder of the adapter that ships with the world; raise CheckpointError if there is none."""
        ...


def find_world(name: str | None = None) -> World[Any]:
    """Return a world by its name, by default the embedded one.

    Raises:
        InputError: an unknown name, or something that is not a world: the message names what it lacks.

    >>> find_world().name == registered.default(registered.WORLDS)
    True
    """
    name = name or registered.default(registered.WORLDS)
    world = registered.find(registered.WORLDS, name)
    doors = [door for door in vars(World) if not door.startswith("_")]
    if lacking := [door for door in doors if not hasattr(world, door)]:
        raise InputError(
            f"world '{name}' lacks {', '.join(lacking)}", hint="r3_rl/worlds/base.py says what a world has"
        )
    return world


def world_speaking(vocabulary: Collection[str]) -> World[Any] | None:
    """Return the installed world whose tokenizer has exactly these tokens; None if there is none. A world that fails to
    import is warned of and passed over.

    >>> world_speaking(find_world().tokenizer().get_vocab()).name == find_world().name, world_speaking(["hello"])
    (True, None)
    """
    wanted = set(vocabulary)
    for name in registered.names(registered.WORLDS):
        try:
            world = find_world(name)
        except InputError as error:
            warnings.warn(str(error), stacklevel=2)
            continue
        if set(world.tokenizer().get_vocab()) == wanted:
            return world
    return None


def chosen_tags(world: World[Any], tags: Sequence[str] | None, exclude: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the kinds of prompts that are kept, in the order they were asked for.

    >>> world = find_world()
    >>> chosen_tags(world, None, world.tags[1:]) == world.tags[:1]
    True
    """
    return tuple(tag for tag in (tags or world.tags) if tag not in exclude)
