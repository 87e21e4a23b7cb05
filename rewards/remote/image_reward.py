"""ImageReward: would a person prefer this image for this prompt? Served from an environment of its own.

Source: Xu et al., "ImageReward" (NeurIPS 2023), package `image-reward` 1.5. Range: 0 to 1, see `low` and `high`.
Licence of the weights: Apache-2.0. Memory: about 1.8 GB of weights.
Cannot judge: counts, positions and text in the image; prompts beyond 35 tokens, which are cut off.

Written after the package's source and not run with it here: no weights could be downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from r3_rl.rewards.unit_scale import UnitScale
from r3_rl.scoring.base import ScorerInfo


class ImageReward:
    """Score clip((reward - low) / (high - low), 0, 1); the published reward has mean 0 and deviation 1 on its data."""

    info = ScorerInfo(
        range=(0.0, 1.0),
        needs=("images",),
        deterministic=True,
        thread_safe=False,
        weights_licence="Apache-2.0",
        memory="1.8 GB",
    )

    def __init__(
        self, *, weights: str = "ImageReward-v1.0", device: str = "cuda", low: float = -2.0, high: float = 2.0
    ) -> None:
        self._scale = UnitScale(name="ImageReward", low=low, high=high)
        import ImageReward

        self._model = ImageReward.load(weights, device=device)

    def __call__(
        self, prompts: Sequence[str], images: Sequence[Any], *, log_metric: Any = None, log_extra: Any = None
    ) -> list[float | None]:
        """Score images (uint8 [H, W, 3]) one at a time, as the package does."""
        import torch
        from PIL import Image

        with torch.inference_mode():
            rewards = [
                self._model.score(prompt, Image.fromarray(image)) for prompt, image in zip(prompts, images, strict=True)
            ]
        return self._scale.scores(rewards, log_metric=log_metric, log_extra=log_extra)
