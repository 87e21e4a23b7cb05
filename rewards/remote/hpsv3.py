"""HPSv3: human preference by a Qwen2-VL of 7 B parameters. Served from an environment of its own.

Source: Ma et al., "HPSv3" (2025), package `hpsv3` 1.0.0. Range: 0 to 1, see `low` and `high`.
Licence of the weights: MIT (HPSv3), Apache-2.0 (Qwen2-VL-7B). Memory: about 16 GB in bfloat16.
Cannot judge: exact counts, positions and spelling; it likes what looks rich.

Written after the package's source and not run with it here: no weights could be downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from r3_rl.errors import InputError
from r3_rl.rewards.unit_scale import UnitScale
from r3_rl.scoring.base import ScorerInfo


class HPSv3:
    """Score clip((mu - low) / (high - low), 0, 1) of the mean that the model predicts.

    `low` and `high` are our choice: look at the metric `published` on your own images before you train on it.
    """

    info = ScorerInfo(
        range=(0.0, 1.0),
        needs=("images",),
        deterministic=True,
        thread_safe=False,
        weights_licence="MIT, Apache-2.0",
        memory="16 GB",
    )

    def __init__(self, *, device: str = "cuda", batch_size: int = 8, low: float = 0.0, high: float = 15.0) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be 1 or more, not {batch_size}")
        self._scale = UnitScale(name="HPSv3", low=low, high=high)
        self._batch_size = batch_size
        from hpsv3 import HPSv3RewardInferencer

        self._model = HPSv3RewardInferencer(device=device)

    def __call__(
        self, prompts: Sequence[str], images: Sequence[Any], *, log_metric: Any = None, log_extra: Any = None
    ) -> list[float | None]:
        """Score images (uint8 [H, W, 3])."""
        import torch
        from PIL import Image

        pictures = [Image.fromarray(image) for image in images]
        means: list[float] = []
        with torch.inference_mode():
            for start in range(0, len(pictures), self._batch_size):
                part = slice(start, start + self._batch_size)
                # `image_paths` takes pictures as well; a row of the answer is (mean, deviation).
                rows = self._model.reward(image_paths=pictures[part], prompts=list(prompts[part]))
                means += rows[:, 0].float().tolist()
        return self._scale.scores(means, log_metric=log_metric, log_extra=log_extra)
