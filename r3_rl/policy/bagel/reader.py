"""From pieces of a context to blocks of the decoder: tokens, patches, latents."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from tokenizers import Tokenizer
from torch import Tensor

from r3_rl.errors import CheckpointError, InputError
from r3_rl.modalities import Context, ImagePiece, Piece, TextPiece
from r3_rl.policy.bagel.autoencoder import Autoencoder, latents_to_tokens, tokens_to_latents
from r3_rl.policy.bagel.config import BagelConfig
from r3_rl.policy.bagel.images import patchify, resize, resized_size
from r3_rl.policy.bagel.packing import Block, LatentBlock, LookBlock, TextBlock

_SPECIAL = {
    "bos_token_id": "<|im_start|>",
    "eos_token_id": "<|im_end|>",
    "start_of_image": "<|vision_start|>",
    "end_of_image": "<|vision_end|>",
}


def special_token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The four special ids that the layout needs, looked up by name."""
    found = {key: tokenizer.token_to_id(token) for key, token in _SPECIAL.items()}
    missing = [_SPECIAL[key] for key, value in found.items() if value is None]
    if missing:
        raise CheckpointError(f"the tokenizer has no {', '.join(missing)}", hint="BAGEL needs a Qwen2.5 tokenizer")
    return {key: value for key, value in found.items() if value is not None}


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """Everything between the toolkit's texts and images and the decoder's blocks."""

    config: BagelConfig
    tokenizer: Tokenizer
    autoencoder: Autoencoder

    def __post_init__(self) -> None:
        self.tokenizer.encode_special_tokens = True  # a text that spells a control token is read letter by letter

    @property
    def bos(self) -> int:
        """Begin-of-text token id."""
        assert self.config.special_token_ids is not None
        return self.config.special_token_ids["bos_token_id"]

    @property
    def eos(self) -> int:
        """End-of-text token id."""
        assert self.config.special_token_ids is not None
        return self.config.special_token_ids["eos_token_id"]

    def token_ids(self, text: str) -> list[int]:
        """Ids of a text without begin and end, none of which is a control token, whatever the text spells.

        Raises InputError for a control token that a vocabulary of words has for a word.
        """
        ids = _token_ids(self.tokenizer, text)
        for number in (self.config.special_token_ids or {}).values():
            if number in ids:
                name = self.tokenizer.id_to_token(number)
                raise InputError(f"{text[:80]!r} spells the control token {name}", hint="take it out of the text")
        return list(ids)

    def text(self, ids: list[int]) -> str:
        """The words of ids, special tokens left out."""
        words: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return words.strip()

    def text_block(self, text: str, ids: tuple[int, ...] | None = None, *, scored: bool = False) -> TextBlock:
        """bos, ids, eos. `scored`: every token after the first is to be predicted."""
        body = list(ids) if ids is not None else self.token_ids(text)
        if body and body[-1] == self.eos:
            body = body[:-1]
        return TextBlock(ids=[self.bos, *body, self.eos], num_scored=len(body) + 1 if scored else 0)

    def look_block(self, image: Tensor) -> LookBlock:
        """Image float [3, H, W] in [0, 1] -> patches for the understanding tower."""
        p = self.config.vit.patch_size
        image = resize(resize(image, self.config.vae_resize), self.config.vit_resize)
        patches = patchify((image - self.config.vit.image_mean) / self.config.vit.image_std, p)
        return LookBlock(patches=patches, grid=(image.shape[1] // p, image.shape[2] // p))

    @torch.no_grad()
    def latent_tokens(self, images: Tensor) -> Tensor:
        """Images float [B, 3, H, W] in [0, 1] -> latent tokens float32 [B, M, C] (the autoencoder's mean)."""
        dtype = next(iter(self.autoencoder.parameters()), images).dtype
        latents = self.autoencoder.encode((images * 2 - 1).to(dtype))
        return latents_to_tokens(latents.float(), self.config.latent_patch_size)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Latent tokens high and wide of an image of `size` (height, width) pixels."""
        stride = self.config.latent_stride
        return size[0] // stride, size[1] // stride

    def latent_block(self, image: Tensor) -> LatentBlock:
        """An image of the context as clean latent tokens."""
        image = resize(image, self.config.vae_resize)
        return LatentBlock(tokens=self.latent_tokens(image[None])[0], grid=self.grid((image.shape[1], image.shape[2])))

    @torch.no_grad()
    def images(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Latent tokens [B, M, C] -> images float32 [B, 3, H, W] in [0, 1]."""
        dtype = next(iter(self.autoencoder.parameters()), tokens).dtype
        scale = self.config.autoencoder.downsample
        latents = tokens_to_latents(tokens, (size[0] // scale, size[1] // scale), self.config.latent_patch_size)
        return (self.autoencoder.decode(latents.to(dtype)).float() * 0.5 + 0.5).clamp(0, 1)

    def blocks(self, context: Context, *, drop: str = "") -> list[Block]:
        """The context's blocks in order. `drop`: `text` leaves out the texts after the last image (all texts where
        there is no image; a plan goes with its prompt, a system prompt stays), `image` leaves out every image: the
        two dropped contexts of guidance."""
        out: list[Block] = []
        for piece in kept_pieces(context, drop):
            if isinstance(piece, TextPiece):
                out.append(self.text_block(piece.text, piece.token_ids))
                continue
            shown = _image(piece)
            if shown.use == "edit":
                out.append(self.latent_block(shown.image))
            out.append(self.look_block(shown.image))
        return out

    def num_tokens(self, context: Context) -> int:
        """Tokens of `blocks`, counted without reading any image."""
        total = 0
        for piece in context:
            if isinstance(piece, TextPiece):
                total += len(self.text_block(piece.text, piece.token_ids).ids)
                continue
            shown = _image(piece)
            size = resized_size(shown.image.shape[1], shown.image.shape[2], self.config.vae_resize)
            if shown.use == "edit":
                total += math.prod(self.grid(size)) + 2
            total += math.prod(resized_size(*size, self.config.vit_resize)) // self.config.vit.patch_size**2 + 2
        return total


@lru_cache(maxsize=4096)
def _token_ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    # every row of a group asks for its prompt, in the rollout and in the update: 72 times a step where 8 would do
    return tuple(tokenizer.encode(text, add_special_tokens=False).ids)


def _image(piece: Piece) -> ImagePiece:
    if not isinstance(piece, ImagePiece):
        raise InputError(f"BAGEL does not read a {type(piece).__name__}", hint="give it texts and images")
    return piece


def kept_pieces(context: Context, drop: str) -> Context:
    """What `Reader.blocks` reads of a context."""
    if not drop:
        return context
    last_image = max((i for i, piece in enumerate(context) if isinstance(piece, ImagePiece)), default=-1)
    if drop == "image":
        return tuple(piece for piece in context if not isinstance(piece, ImagePiece))
    return tuple(
        piece for i, piece in enumerate(context) if isinstance(piece, ImagePiece) or i < last_image or piece.keep
    )
