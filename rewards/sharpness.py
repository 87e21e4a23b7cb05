"""How sharp is an image? For trying things: no weights, no prompt.

Source: the variance of the Laplacian, the usual focus measure (Pech-Pacheco et al., ICPR 2000).
Range: 0 to 1 (1 is never quite reached). Weights: none. Memory: none.
Cannot judge: anything about the prompt; noise is sharper than any photograph.
"""

from __future__ import annotations

from r3_rl.scoring.base import scorer_info


@scorer_info(range=(0.0, 1.0), needs=("images",), deterministic=True)
def sharpness(images: list, *, half: float = 0.01, **columns) -> list[float]:
    """Score the variance of the Laplacian of the grey image: score = v / (v + half).

    `images` are uint8 [H, W, 3], at least 3 pixels high and wide; `half` is the variance that scores 0.5.

    >>> import numpy as np
    >>> edge = np.zeros((8, 8, 3), dtype=np.uint8)
    >>> edge[:, 4:] = 255
    >>> blurred = np.repeat(np.linspace(0, 255, 8).astype(np.uint8)[None, :, None], 8, axis=0).repeat(3, axis=2)
    >>> sharp, soft = sharpness([edge, blurred])
    >>> sharp > 0.9 > 0.1 > soft
    True
    """
    if half <= 0:
        raise ValueError(f"half must be above 0, not {half}")
    return [variance / (variance + half) for variance in map(_laplacian_variance, images)]


def _laplacian_variance(image) -> float:
    if min(image.shape[:2]) < 3:
        raise ValueError(f"an image of {image.shape[0]} x {image.shape[1]} pixels has no inside; 3 x 3 is the least")
    grey = (image[..., 0] * 0.299 + image[..., 1] * 0.587 + image[..., 2] * 0.114) / 255
    inside = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * inside).var())
