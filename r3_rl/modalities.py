"""What a policy reads, writes and draws: texts, images, and whatever else a backbone brings.

A modality is a `Piece` (how a context holds it) and a `Segment` (how it was made). Nothing outside of backbones asks
which one it has: whoever scores, credits, batches, pools or writes them as bytes goes through what these two have in
common. One more modality is two classes like `ImagePiece` and `ImageSegment`, in the backbone's own folder.

Shape legend: H, W pixels; S elements of a segment; N latent tokens of an image; C channels of a latent token.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from r3_rl.pixels import to_uint8

if TYPE_CHECKING:  # torch takes more than a second to import and the verbs that only read recipes need none of it
    import numpy as np
    import torch

Objective = Literal["understanding", "generation"]
"""What is written counts as understanding, what is drawn as generation."""


class Piece(ABC):
    """One block of a context. A frozen dataclass of texts, numbers and tensors, so that it can be written as bytes."""

    keep: bool = False
    """True for what every context begins with, a system prompt: guidance's text-dropped context keeps it."""

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """What the block says: pieces with equal keys are read once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TextPiece(Piece):
    """One text block of a context: wrapped in begin and end tokens by the backbone."""

    text: str
    token_ids: tuple[int, ...] | None = None
    """Ids as sampled, without begin and end; None lets the backbone tokenise `text`."""
    keep: bool = False

    @cached_property
    def key(self) -> Hashable:
        """Its words, or its ids.

        >>> TextPiece(text="a red circle").key == TextPiece(text="a red circle").key
        True
        """
        return ("text", self.text if self.token_ids is None else self.token_ids, self.keep)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImagePiece(Piece):
    """One image of a context."""

    image: torch.Tensor
    """float32 [3, H, W] in [0, 1]."""
    use: str = "look"
    """`look`: understanding tokens only (critique, question). `edit`: latent and understanding tokens (refinement)."""

    @cached_property
    def key(self) -> Hashable:
        """What the image shows and how it is read: a digest of its values and `use`. It is computed when it is first
        asked for (12 ms for 1024 x 1024 pixels), so the image must not be written to afterwards.

        >>> import torch
        >>> ImagePiece(image=torch.zeros(3, 2, 2)).key == ImagePiece(image=torch.zeros(3, 2, 2)).key
        True
        """
        return ("image", content_key(self.image), self.use)


Context = tuple[Piece, ...]
"""What a policy reads before it writes or draws: texts and images in order. A backbone encodes the leading pieces that
several rows share once. Equal keys share, whichever objects hold them."""


def content_key(values: torch.Tensor) -> Hashable:
    """Return a digest of a tensor's values, type and shape."""
    values = values.detach().cpu().contiguous()
    digest = hashlib.blake2b(values.numpy().reshape(-1), digest_size=16).hexdigest()
    return (digest, str(values.dtype), tuple(values.shape))


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment(ABC):
    """What a policy wrote or drew in one go, and the log-probs it was sampled with: a unit of credit.

    A text is written; an image, or what else a backbone draws, is a `DrawnSegment`. That is all that training, stages
    and nodes tell apart.
    """

    objective: ClassVar[Objective]
    """What its gradient counts as, and whose loss it has."""
    context: Context
    log_probs: torch.Tensor
    """float32 [S], of its S elements: the tokens of a text, the scored denoising steps or the tokens of an image."""

    @property
    @abstractmethod
    def task(self) -> str:
        """The stage that asked for it, by which a routed adapter scores it again; empty if nobody said."""

    @abstractmethod
    def piece(self, use: str = "look") -> Piece:
        """As what a later context reads."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TextSegment(Segment):
    """A sampled text. Its log-probs are under the tempered and truncated distribution that was sampled from."""

    objective: ClassVar[Objective] = "understanding"
    token_ids: tuple[int, ...]
    """[S] ids sampled, end token included when the policy ended the text itself."""
    text: str
    """The decoded text without special tokens."""
    ended: bool
    """False when the text ran into the token limit; then no end token is in `token_ids`."""
    temperature: float = 1.0
    cutoff: torch.Tensor | None = None
    """float32 [S], where top-p cut the vocabulary off at each token: in play were the tokens whose logit, divided by
    the temperature and less the mean over the vocabulary, is at least this. None without truncation."""
    task: str = ""

    def piece(self, use: str = "look") -> TextPiece:
        """The text with the ids that were sampled."""
        return TextPiece(text=self.text, token_ids=self.token_ids)


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnSegment(Segment):
    """Something drawn or given: an image, or another modality of a backbone's own, which derives from this class."""

    objective: ClassVar[Objective] = "generation"
    argument: ClassVar[str]
    """The keyword under which scorers take it."""
    drawing: Any = None
    """The `Drawing` settings it was drawn with: guidance and SDE convention are needed to score it again."""

    @property
    def task(self) -> str:
        """As the drawing has it."""
        return self.drawing.task if self.drawing is not None else ""

    @abstractmethod
    def given(self) -> DrawnSegment:
        """The same as something given: to be looked at, not to be learned from."""

    @abstractmethod
    def scored(self) -> Any:
        """As scorers take it."""

    def least(self) -> DrawnSegment:
        """The smallest part that can be scored again; all of it, unless a class knows better."""
        return self


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSegment(DrawnSegment):
    """An image. `FlowSegment` and `ImageTokenSegment` hold how it was drawn; of an image that is neither, nothing is
    known (`still`)."""

    argument: ClassVar[str] = "images"
    image: torch.Tensor
    """float32 [3, H, W] in [0, 1], the finished image."""

    def piece(self, use: str = "look") -> ImagePiece:
        """The image, to be looked at or to be redrawn."""
        return ImagePiece(image=self.image, use=use)

    def given(self) -> ImageSegment:
        """The image alone."""
        return still(self.image)

    def scored(self) -> np.ndarray:
        """uint8 [H, W, 3]."""
        return to_uint8(self.image)


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

    def least(self) -> FlowSegment:
        """The first latent token of the first scored step. Tokens are square: a side is sqrt(height * width / tokens)
        pixels."""
        height, width = self.drawing.size
        side = round((height * width / self.states.shape[1]) ** 0.5)
        return replace(
            self,
            image=self.image[:, :side, :side],
            states=self.states[:1, :1],
            next_states=self.next_states[:1, :1],
            times=self.times[:1],
            next_times=self.next_times[:1],
            log_probs=self.log_probs[:1],
            drawing=replace(self.drawing, size=(side, side)),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageTokenSegment(ImageSegment):
    """An image and the tokens of a codebook that it is made of, sampled one after the other."""

    token_ids: tuple[int, ...]
    """[S] ids as sampled, in the order in which they were."""

    def least(self) -> ImageTokenSegment:
        """The first token."""
        return replace(self, token_ids=self.token_ids[:1], log_probs=self.log_probs[:1])


def still(image: torch.Tensor) -> ImageSegment:
    """A given image float32 [3, H, W]: something to look at, not to learn from.

    >>> import torch
    >>> len(still(torch.zeros(3, 2, 2)).log_probs)
    0
    """
    import torch  # here, because checking a recipe reads this file and loads no torch

    return ImageSegment(context=(), image=image, log_probs=torch.zeros(0))
