"""How well does an image compress? For trying things: no weights, no prompt, a score that any image model can climb.

Source: the compressibility reward of DDPO (arXiv 2305.13301), relative to the size of the raw pixels.
Range: 0 to 1. Weights: none. Memory: none.
Cannot judge: anything about the prompt or about beauty. It is won by flat images (`small`) or by noise (`large`).
"""

from __future__ import annotations

import io
from typing import Literal

from r3_rl.scoring.base import scorer_info


@scorer_info(range=(0.0, 1.0), needs=("images",), deterministic=True)
def jpeg_size(
    images: list, *, prefer: Literal["small", "large"] = "small", quality: int = 95, log_metric=None, **columns
) -> list[float]:
    """Score the share of bytes that JPEG saves (`prefer: small`) or keeps (`large`).

    kept = min(1, JPEG bytes / (3 height width)); score = 1 - kept or kept.
    `images` are uint8 [H, W, 3]; `quality` is 1 to 95.

    >>> import numpy as np
    >>> flat = np.zeros((64, 64, 3), dtype=np.uint8)
    >>> noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    >>> small = jpeg_size([flat, noise])
    >>> small[0] > 0.9 > small[1]
    True
    """
    sizes = [_jpeg_bytes(image, quality) for image in images]
    if log_metric is not None:
        log_metric("kilobytes", sum(sizes) / len(sizes) / 1000)
    kept = [min(1.0, size / image.size) for size, image in zip(sizes, images, strict=True)]
    return kept if prefer == "large" else [1.0 - share for share in kept]


def _jpeg_bytes(image, quality: int) -> int:
    from PIL import Image  # here, so that listing the scorers stays quick

    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=quality)
    return file.tell()
