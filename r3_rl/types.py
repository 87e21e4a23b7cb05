"""The words of the toolkit as data: what flows between the rooms.

Shape legend: H, W pixels; T tokens of a text; S scored denoising steps; N latent tokens of an image; C channels of a
latent token. Images are float32 tensors [3, H, W] in [0, 1] inside the toolkit and uint8 [H, W, 3] at its borders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes more than a second to import and the verbs that only read recipes need none of it
    import torch

STANDARD_ARGUMENTS = (
    "prompts",
    "completions",
    "completion_ids",
    "images",
    "draft_images",
    "critiques",
    "trainer_state",
    "log_metric",
    "log_extra",
)
"""Keywords that every call of a scorer offers, before the data set's columns."""
STAGES = ("plan", "draft", "critique", "refinement", "answer")
"""What a policy is asked for."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What the user asks to be drawn, with the columns of its data set.

    >>> Prompt(text="a red circle", columns={"tag": "single_object"}).columns["tag"]
    'single_object'
    """

    text: str
    """The words shown to the policy."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The data set's own columns, handed to scorers by keyword (GenEval metadata, questions, ...)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TextPiece:
    """One text block of a context: wrapped in begin and end tokens by the backbone."""

    text: str
    token_ids: tuple[int, ...] | None = None
    """Ids as sampled, without begin and end; None lets the backbone tokenise `text`."""
    keep: bool = False
    """True for a system prompt: guidance's text-dropped context keeps it."""

    @cached_property
    def key(self) -> Hashable:
        """What the block says: pieces with equal keys are read once.

        >>> TextPiece(text="a red circle").key == TextPiece(text="a red circle").key
        True
        """
        return ("text", self.text if self.token_ids is None else self.token_ids, self.keep)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImagePiece:
    """One image of a context."""

    image: torch.Tensor
    """float32 [3, H, W] in [0, 1]."""
    use: str = "look"
    """`look`: understanding tokens only (critique, question). `edit`: latent and understanding tokens (refinement)."""

    @cached_property
    def key(self) -> Hashable:
        """What the image shows and how it is read: a digest of its values, its shape and `use`. It is computed when it
        is first asked for (12 ms for 1024 x 1024 pixels), so the image must not be written to afterwards.

        >>> import torch
        >>> ImagePiece(image=torch.zeros(3, 2, 2)).key == ImagePiece(image=torch.zeros(3, 2, 2)).key
        True
        """
        values = self.image.detach().cpu().contiguous()
        digest = hashlib.blake2b(values.numpy().reshape(-1), digest_size=16).hexdigest()
        return ("image", digest, str(values.dtype), tuple(values.shape), self.use)


Piece = TextPiece | ImagePiece
Context = tuple[Piece, ...]
"""What a policy reads before it writes or draws: texts and images in order. A backbone encodes the leading pieces that
several rows share once. Equal keys share, whichever objects hold them."""


def context_key(context: Context) -> tuple[Hashable, ...]:
    """Return the keys of a context's pieces, in order: contexts with equal keys are the same to a policy.

    >>> context_key((TextPiece(text="a"), TextPiece(text="b", token_ids=(7,), keep=True)))
    (('text', 'a', False), ('text', (7,), True))
    """
    return tuple(piece.key for piece in context)


def written_before(context: Context) -> Hashable:
    """Return `(context_key, token_ids)` of the sampled text that a context ends with; None if it does not end with one.

    A plan and the image drawn after it are brought together by this key.

    >>> prompt, plan = TextPiece(text="a red circle"), TextPiece(text="red", token_ids=(7, 2))
    >>> written_before((prompt, plan)) == (context_key((prompt,)), (7, 2)), written_before((prompt,))
    (True, None)
    """
    last = context[-1] if context else None
    if not isinstance(last, TextPiece) or last.token_ids is None:
        return None
    return context_key(context[:-1]), last.token_ids


@dataclass(frozen=True, kw_only=True, eq=False)
class TextSegment:
    """A sampled text and the log-probs it was sampled with: a unit of credit."""

    context: Context
    token_ids: tuple[int, ...]
    """[T] ids sampled, end token included when the policy ended the text itself."""
    log_probs: torch.Tensor
    """float32 [T], under the tempered and truncated distribution that was sampled from."""
    text: str
    """The decoded text without special tokens."""
    ended: bool
    """False when the text ran into the token limit; then no end token is in `token_ids`."""
    temperature: float = 1.0
    cutoff: torch.Tensor | None = None
    """float32 [T], where top-p cut the vocabulary off at each token: in play were the tokens whose logit, divided by
    the temperature and less the mean over the vocabulary, is at least this. None without truncation."""
    task: str = ""
    """The stage that asked for it; an adapter routed by task scores it under the same one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSegment:
    """An image and the log-probs it was drawn with: a unit of credit. `FlowSegment` and `ImageTokenSegment` hold how it
    was drawn; of an image that is neither, nothing is known (`still`)."""

    context: Context
    image: torch.Tensor
    """float32 [3, H, W] in [0, 1], the finished image."""
    log_probs: torch.Tensor
    """float32 [S], of the scored steps or tokens; empty for an image of which nothing can be learned."""
    drawing: Any = None
    """The `Drawing` settings the image was drawn with: guidance and SDE convention are needed to score it again."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FlowSegment(ImageSegment):
    """An image and its stochastic denoising steps. A log-prob is the mean over the latent's dimensions; steps without
    noise have none."""

    states: torch.Tensor
    """float32 [S, N, C], x_t before each scored step."""
    next_states: torch.Tensor
    """float32 [S, N, C], the sampled x at the end of each scored step; with `matching` the velocity to match."""
    times: torch.Tensor
    """float32 [S], t of each scored step; 1 is noise, 0 is data."""
    next_times: torch.Tensor
    """float32 [S], t after the step, below `times`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageTokenSegment(ImageSegment):
    """An image and the tokens of a codebook that it is made of, sampled one after the other."""

    token_ids: tuple[int, ...]
    """[S] ids as sampled, in the order in which they were."""


def still(image: torch.Tensor) -> ImageSegment:
    """A given image float32 [3, H, W]: something to look at, not to learn from.

    >>> import torch
    >>> len(still(torch.zeros(3, 2, 2)).log_probs)
    0
    """
    import torch  # here, because checking a recipe reads this file and loads no torch

    return ImageSegment(context=(), image=image, log_probs=torch.zeros(0))


Segment = TextSegment | ImageSegment


@dataclass(frozen=True, kw_only=True, eq=False)
class Critique:
    """What the policy said about an image."""

    segment: TextSegment
    well_formed: bool
    """True when the text closes its thoughts and then says one thing."""
    stop: bool
    """True when a well-formed critique asks for no further edit."""
    instruction: str
    """The edit instruction; empty on a stop or a malformed critique."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the panel said about one image (or one text)."""

    total: float | None
    """Weighted value in the panel's range; None when no scorer gave a usable score (missing is never 0)."""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """Raw score by scorer name."""
    words: str = ""
    """The reason in words, where a scorer gave one (`log_extra("reason", [...])`)."""
    best: float = 1.0
    """Total of a perfect image: what the scorers that apply, with their weights and ranges, give at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """An image of a trajectory and how it came about. Round 0 is the draft."""

    image: ImageSegment
    plan: TextSegment | None = None
    """Round 0: the plan the draft was drawn from."""
    critique: Critique | None = None
    """Round >= 1: the critique of the image before, which led to this image."""
    verdict: Verdict | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """Draft, critiques and refinements of one prompt."""

    prompt: Prompt
    rounds: tuple[Round, ...]
    last_critique: Critique | None = None
    """The critique that ended the loop (a stop or a malformed one); None when `rounds` ran out."""

    @property
    def final(self) -> Round:
        """The last image drawn."""
        return self.rounds[-1]
