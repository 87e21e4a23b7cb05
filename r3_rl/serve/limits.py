"""What a server of a model allows itself and others."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ServeLimits:
    """The most that is taken in one request, and by all of them together."""

    body_bytes: int = 20 * MIB
    """Of one request."""
    image_pixels: int = 4096 * 4096
    """Of one image, as its header claims them: they are checked before a pixel is unpacked."""
    held_pixels: int = 4 * 4096 * 4096
    """Of the images of all requests inside; 12 bytes each once they are unpacked."""
    num_images: int = 16
    """Images in a conversation."""
    prompt_letters: int = 4_000
    """Of a prompt or an instruction."""
    chat_letters: int = 32_000
    """Of all texts of a conversation."""
    n: int = 8
    """Images or answers of one request."""
    rounds: int = 8
    """Refinements of an image."""
    max_tokens: int = 4096
    """Tokens of an answer."""
    max_waiting: int = 128
    """Requests inside; one more is answered with 503."""
    per_address: int = 64
    """Requests of one address inside; one more is answered with 429."""
    max_batch: int = 16
    """Texts or images that are made together."""
