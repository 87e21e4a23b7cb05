"""How unlike its peers is an image? Against groups that all draw the same picture.

Source: mean pairwise distance of thumbnails, the plainest measure of spread within a group. Range: 0 to 1. Weights:
none. Memory: none.
Cannot judge: anything about the prompt. Trained alone it is won by noise and wild colours; give it a small weight.
Peers are needed: an image without one has no score.
"""

from __future__ import annotations

from r3_rl.scoring.base import scorer_info


@scorer_info(range=(0.0, 1.0), needs=("images",), deterministic=True, group_wise=True)
def diversity(images: list, *, side: int = 8, **columns) -> list[float | None]:
    """Score the mean over the peers of the mean absolute difference of thumbnails of `side` x `side` pixels in [0, 1].

    `images` are uint8 [H, W, 3] of one group; they may differ in size.

    >>> import numpy as np
    >>> black, white = np.zeros((16, 16, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    >>> diversity(images=[black, black, white])
    [0.5, 0.5, 1.0]
    """
    import numpy as np
    from PIL import Image

    if side < 1:
        raise ValueError(f"side must be at least 1, not {side}")
    if len(images) < 2:
        return [None for _ in images]
    small = [Image.fromarray(image).resize((side, side), Image.Resampling.BOX) for image in images]
    thumbs = np.stack([np.asarray(picture, np.float64) / 255 for picture in small])
    apart = np.abs(thumbs[:, None] - thumbs[None, :]).mean(axis=(2, 3, 4))
    return [float(value) for value in apart.sum(axis=1) / (len(images) - 1)]
