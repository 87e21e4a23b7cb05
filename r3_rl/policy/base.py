"""What a backbone is to the rest of the toolkit: it writes, draws, and scores again what it wrote and drew.

A backbone knows nothing of R3, groups or rewards. Rows are seeded one by one, so a batch gives what its rows would
give alone, and the same seeds give the same texts and images on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from r3_rl.errors import InputError
from r3_rl.flow.guidance import Guidance
from r3_rl.modalities import Context, DrawnSegment, Segment, TextSegment
from r3_rl.policy.backbone import BackboneSpec
from r3_rl.recipe.base import default
from r3_rl.recipe.drawing import DraftSection, DrawingSection
from r3_rl.recipe.sampling import WritingSection

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a text is sampled."""

    max_new_tokens: int = default(WritingSection, "max_new_tokens")
    """Most tokens to write, end token included."""
    temperature: float = default(WritingSection, "temperature")
    """>= 0; 0 takes the likeliest token."""
    top_p: float = default(WritingSection, "top_p")
    """Share of probability kept, (0, 1]."""
    task: str = ""
    """The stage that asks, one of `policy.routing.TASKS`; only an adapter that is routed by task reads it."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How an image is drawn. A backbone of image tokens has no noise: it reads guidance and size alone."""

    num_steps: int = default(DrawingSection, "num_steps")
    """Network steps (a schedule of one point more)."""
    shift: float = default(DrawingSection, "timestep_shift")
    """Time shift of the schedule, > 0."""
    convention: str = default(DrawingSection, "sde")
    """SDE convention, a name in `flow.sde.CONVENTIONS`."""
    eta: float = default(DrawingSection, "eta")
    """Noise level of stochastic steps."""
    sde_steps: tuple[int, ...] = ()
    """Which steps are stochastic and scored; the others follow the ODE."""
    matching_seed: int | None = None
    """Of the noise at which `matching` scores the finished image; None: the noise that it was drawn from."""
    guidance: Guidance = field(default_factory=Guidance)
    size: tuple[int, int] = default(DraftSection, "size")
    """Height, width in pixels."""
    task: str = ""
    """As in `Sampling`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Replay:
    """A segment under the current weights."""

    log_probs: torch.Tensor
    """float32 [S] of its tokens or scored steps, with gradient."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FlowReplay(Replay):
    """Denoising steps: their divergence from the reference policy's is known in closed form."""

    mean: torch.Tensor
    """float32 [S, N, C], with gradient."""
    std: torch.Tensor
    """float32 [S]."""
    velocity: torch.Tensor
    """float32 [S, N, C], as guided, with gradient."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One supervised sample: a context, then an answer and / or an image to learn."""

    context: Context
    answer: str | None = None
    """Text to learn after the context (plan, critique, answer)."""
    image: torch.Tensor | None = None
    """float32 [3, H, W] in [0, 1], image to learn after the context and the answer."""
    task: str = ""
    """The stage whose adapter learns it; only an adapter that is routed by task reads it, and must."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SupervisedLoss:
    """Sums, so that micro-batches add up."""

    flow: torch.Tensor
    """Squared velocity error summed over latent dimensions; of image tokens, their cross entropy."""
    num_flow: int
    """Latent dimensions, or image tokens."""
    text: torch.Tensor
    """Cross entropy summed over answer tokens."""
    num_text: int
    """Answer tokens."""


@dataclass(frozen=True, kw_only=True)
class SupervisedNoise:
    """At which noise levels images are learned; a backbone that draws no noise passes it over."""

    times_per_image: int
    """Noise levels of each image in a step."""
    time_mean: float
    """m in t = sigmoid(m + N(0, 1))."""
    soften_below: float
    """s: the loss at t < s weighs (t / s)^2; 0 leaves it unchanged."""


Heard = Callable[[str], None]
"""Is told a text as far as it is written, after every token; it returns at once and raises nothing."""


class Layered(Protocol):
    """A module that is a stack of like layers, and whose call is a pass of the network: who shards its weights steps
    in around it and its layers.

    It is called with the embedded tokens first, and returns tensors, or lists and dataclasses of them. Every call runs
    every layer, and the replay of one text is one call.
    """

    layers: torch.nn.ModuleList
    """In the order in which they run; together they hold everything that training without an adapter trains."""


class Sampler(Protocol):
    """The half of a policy that writes and draws: all that the loop needs of it."""

    @property
    def spec(self) -> BackboneSpec:
        """What is the same for all sizes of its backbone."""
        ...

    def write(
        self,
        contexts: Sequence[Context],
        sampling: Sampling,
        seeds: Sequence[int],
        heard: Sequence[Heard | None] | None = None,
    ) -> list[TextSegment]:
        """One text a context, without gradient. `heard`: who listens to each of them while it is written."""
        ...

    def draw(
        self,
        contexts: Sequence[Context],
        drawings: Sequence[Drawing],
        seeds: Sequence[int],
        noise_seeds: Sequence[int] | None = None,
    ) -> Sequence[DrawnSegment]:
        """One image, or what else it draws, a context, without gradient. Drawings of one call differ in their
        stochastic steps and tasks only.

        Rows with the same `noise_seeds` start from the same noise; `seeds` keep their stochastic steps apart.
        """
        ...


class Policy(Sampler, Protocol):
    """A backbone with weights: what it can do, and what the trainer needs to hold it.

    A class that is derived from this one leaves out what it does not have: companions, layers to shard, a cache.
    """

    @property
    def module(self) -> torch.nn.Module:
        """The weights (what an adapter is attached to)."""
        ...

    @property
    def companions(self) -> Mapping[str, torch.nn.Module]:
        """What is held beside the module and never trained, by name (an autoencoder); empty for nothing."""
        return {}

    @property
    def layered(self) -> Layered | None:
        """Its layers, for shards; None where `BackboneSpec.can_shard` is False."""
        return None

    @property
    def tokenizer(self) -> Tokenizer:
        """Of its texts."""
        ...

    def replay(self, segments: Sequence[Segment]) -> list[Replay]:
        """Scores segments under the current weights, with gradient."""
        ...

    def num_tokens(self, segments: Sequence[Segment]) -> int:
        """Tokens that replaying the segments together reads, contexts included and what they share as often as `replay`
        reads it: once, if it can (micro-batches are packed by it)."""
        ...

    def supervised(
        self, examples: Sequence[Example], noise: SupervisedNoise, generator: torch.Generator
    ) -> SupervisedLoss:
        """Summed losses of supervised examples, with gradient; noise comes from the generator."""
        ...

    def supervised_sizes(self, examples: Sequence[Example], noise: SupervisedNoise) -> tuple[int, int]:
        """`num_flow` and `num_text` of `supervised`, counted without a pass: the step's losses are means over them."""
        ...

    def checkpoint_activations(self, enabled: bool) -> None:
        """Whether a backward pass computes the layers' activations again instead of keeping them. Raises InputError
        where it cannot, which `BackboneSpec.can_recompute` says beforehand."""
        if enabled:
            raise InputError(
                f"{self.spec.title} does not compute activations again",
                hint="set training.gradient_checkpointing=false",
            )

    def cache_bytes(self, segments: Sequence[Segment]) -> int:
        """Bytes of the keys and values that are held while these segments are written or drawn side by side."""
        return 0

    def remember_base(self, *, on_host: bool = False) -> None:
        """Keeps a copy of the weights that are about to be trained, where there is no adapter to switch off."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Inside, the policy is the reference policy: its adapter is switched off, or the remembered base is back.

        Raises RunError when there is no base to go back to.
        """
        ...

    def base_restored(self) -> AbstractContextManager[None]:
        """Inside, the caller has put the base's weights back itself, and `reference` leaves them alone."""
        ...
