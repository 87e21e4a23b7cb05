"""A reward that knows nothing: a fair coin. The control that any gain should be compared with.

Source: none; random rewards as a control are discussed in "Spurious rewards" (arXiv 2506.10947).
Range: 0 or 1. Weights: none. Memory: none.
Cannot judge: anything. What still rises with it is not learned from a reward: lower entropy, drift, or chance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from r3_rl.scoring.base import scorer_info

if TYPE_CHECKING:
    import numpy as np


@scorer_info(range=(0.0, 1.0), needs=("images",), deterministic=True)
def random_reward(images: Sequence[np.ndarray], *, seed: int = 0, **columns: Any) -> list[float]:
    """Score 1 for half of all images and 0 for the others, by a hash of their pixels.

    The same image always gets the same score; images that look alike get unrelated ones.

    Args:
        images: uint8 [H, W, 3].
        seed: another seed is another coin.

    >>> import numpy as np
    >>> images = [np.full((2, 2, 3), value, dtype=np.uint8) for value in range(200)]
    >>> scores = random_reward(images)
    >>> sorted(set(scores)), 80 < sum(scores) < 120, scores == random_reward(images)
    ([0.0, 1.0], True, True)
    """
    return [float(hashlib.sha256(bytes([seed % 256]) + image.tobytes()).digest()[0] % 2) for image in images]
