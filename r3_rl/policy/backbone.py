"""What a backbone is before its weights are loaded: a folder that it knows, sizes, branches, templates.

`Backbone` is the door that the rest of the toolkit goes through; `policy.base.Policy` is what comes out of it. Nothing
here loads torch, since checking a recipe asks a backbone too; whatever needs torch imports it when it is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from r3_rl.recipe.base import Problem, Section, default
from r3_rl.recipe.sampling import ModelSection

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from r3_rl.policy.base import Example, Policy

GENERATION = "generation"
"""The branch that draws, in backbones that have one of its own."""
ATTENTION: str = default(ModelSection, "attention")
"""What `Backbone.load` takes for `attention` unless it is told."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """Weights that serve one of the two abilities, or both of them: `understanding`, `generation`, `shared`."""

    adapted: str
    """Pattern of the full names of its linear layers that get adapters."""
    marks: tuple[str, ...] = ()
    """What the names of its parameters contain; empty for the branch that has all the others."""


Branches = Mapping[str, Branch]
"""The branches of a backbone by name; at most one has no marks."""


def branch_of(name: str, branches: Branches) -> str:
    """Return the branch that a parameter or module belongs to, by its name.

    >>> branches = {"understanding": Branch(adapted="up"), "generation": Branch(adapted="up_gen", marks=("_gen",))}
    >>> branch_of("layers.0.up_gen", branches), branch_of("head", branches)
    ('generation', 'understanding')
    """
    marked = (branch for branch, found in branches.items() if any(mark in name for mark in found.marks))
    unmarked = (branch for branch, found in branches.items() if not found.marks)
    return next(marked, None) or next(unmarked)


@dataclass(frozen=True, kw_only=True)
class Templates:
    """The words that a backbone is told at each stage, for models that were not trained on a world of ours."""

    reflect: str
    """Read after the image that is looked at; `{prompt}` is the prompt's text."""
    reason_system: str = ""
    """Read before the prompt; empty for none."""


@dataclass(frozen=True, kw_only=True)
class ImageSizes:
    """The images that a model of one size draws and looks at.

    >>> ImageSizes(stride=16, largest=1024, look_tokens=258).drawn_tokens((512, 512))
    1026
    """

    stride: int
    """Pixels: both sides of a drawn image are multiples of it."""
    largest: int
    """Pixels: the largest side that is drawn, a multiple of `stride`."""
    look_tokens: int
    """The fewest tokens that an image in a context takes."""

    def drawn_tokens(self, size: tuple[int, int]) -> int:
        """Tokens of an image of (height, width) pixels while it is drawn, begin and end included."""
        return (size[0] // self.stride) * (size[1] // self.stride) + 2


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """What is the same for a backbone's models of every size."""

    name: str
    """As `model.kind` of a recipe says it."""
    title: str
    """As people say it."""
    licence: str
    """Of the released weights."""
    branches: Branches
    """Where adapters go, and which learning rate a weight has."""
    layers: str
    """Pattern of the names of the parameters that training without an adapter trains: those of the repeated layers."""
    matrices: tuple[str, ...]
    """Parts of the names of the weights that pretraining steps as matrices (Muon), not as vectors."""
    refines: Literal["edit", "regenerate"]
    """How an image is refined: `edit` redraws the image by an instruction; `regenerate` draws the prompt again after it
    has looked at the image and read the critique."""
    draws: Literal["flow", "tokens"] = "flow"
    """How images are drawn: `flow` in denoising steps, each of which an update computes by itself; `tokens` one by one,
    which an update computes together."""
    can_recompute: bool = False
    """Whether `training.gradient_checkpointing` works (`Policy.checkpoint_activations`)."""
    can_shard: bool = False
    """Whether full weights can be trained with `training.parallel.kind: fsdp2` (`Policy.layered`)."""
    can_route: bool = False
    """Whether every token may take the adapters of its task (`Sampling.task`, `Drawing.task`): `balance.routing`."""
    released: tuple[str, ...] = ()
    """Names on the hub whose sizes are those of `Backbone.sizes(None)`."""
    templates: Templates | None = None
    """Chosen by `rollout.protocol: NAME`; None for a backbone that has none of its own."""
    rollout: Mapping[str, Any] = field(default_factory=dict)
    """Section `rollout` of a recipe for a folder of weights that brings no recipe."""


class Backbone(Protocol):
    """A family of models, found by name (`policy.registry`). An instance of it is a constant of its package."""

    @property
    def spec(self) -> BackboneSpec:
        """What holds for every size."""
        ...

    @property
    def size_section(self) -> type[Section]:
        """Section `pretrain.model` of a recipe: what a small model of this family is made from, with bounds and
        defaults."""
        ...

    def refusal(self, folder: Path) -> str:
        """Return why a folder does not hold one of these models, such as `it has no config.json`; empty if it does."""
        ...

    def sizes(self, folder: Path | None) -> ImageSizes:
        """Return the image sizes of a folder's model, from its JSON files; None asks for those of the release.

        Raises CheckpointError for files that cannot be read.
        """
        ...

    def load(
        self, folder: Path, *, dtype: torch.dtype, device: str, random_init: bool = False, attention: str = ATTENTION
    ) -> Policy:
        """Return the folder's policy, frozen.

        Args:
            folder: weights, their JSON files and the tokenizer.
            dtype: of the weights that an adapter or the training of full weights works on.
            device: where everything goes.
            random_init: random weights of the folder's sizes; then it needs no weight files.
            attention: `auto`, `matmul` or `sdpa`; a backbone with one way of its own passes it over.

        Raises CheckpointError for files that are missing or do not fit.
        """
        ...

    def new(self, size: Any, tokenizer: Tokenizer, *, image_size: int, background: float, seed: int) -> Policy:
        """Return a small policy with fresh weights, to be pretrained.

        Args:
            size: a `size_section`, which fits the images.
            tokenizer: of the world.
            image_size: side of the world's images in pixels.
            background: their most frequent value, in [0, 1].
            seed: of the weights.
        """
        ...

    def misfits(self, size: Any, image_size: int) -> Iterable[Problem]:
        """Find what of a `size_section` does not fit a world's images of so many pixels a side."""
        ...

    def describe(self, size: Any) -> str:
        """Return the architecture of such a small model, for its card: a noun phrase."""
        ...

    def fingerprint(self, folder: Path) -> str:
        """Return a digest of the folder's weights, which an adapter remembers."""
        ...

    def save(self, policy: Policy, folder: Path, *, dtype: torch.dtype | None = None) -> None:
        """Write a folder that `load` reads back: weights, JSON files, tokenizer. The policy stays as it is.

        Args:
            policy: of this backbone, without an adapter.
            folder: created if missing.
            dtype: that the trained module's weights are written in; None keeps theirs.
        """
        ...

    def look(self, policy: Policy, images: torch.Tensor) -> torch.Tensor | None:
        """Return what the understanding tower tells of images [n, 3, H, W] in [0, 1], with gradient: [n, patches in
        reading order, width]. None for a backbone without a tower that can be pretrained by itself."""
        ...

    def sketch(self, policy: Policy, examples: Sequence[Example], generator: torch.Generator) -> torch.Tensor | None:
        """Return what the decoder holds of images that are noise alone, after the contexts and answers of examples,
        with gradient: [n, parts of an image in reading order, width]. None for a backbone that draws no noise.

        Args:
            policy: of this backbone.
            examples: each with an image, of one size, of which nothing but the size is read.
            generator: of the noise, on the host.
        """
        ...

    def probe(self, policy: Policy, task: str = "") -> torch.Tensor:
        """Return the outputs [n], float32 on the host, for one fixed input that passes through every branch: equal
        policies give equal outputs. task: by which it is read, where the policy's adapter is routed by task."""
        ...

    def write_tiny(self, folder: Path, *, seed: int = 0) -> Path:
        """Write a folder of random weights that takes seconds on a CPU, and return it: for trying recipes, and for the
        test that every backbone has to pass."""
        ...
