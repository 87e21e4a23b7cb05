"""Which picture would people on Pick-a-Pic have chosen for this prompt?

Source: PickScore (Kirstain et al., NeurIPS 2023, arXiv 2305.01569): CLIP ViT-H/14 tuned on choices between two.
Range: 0 to 1 for the published 0 to 100; real pictures lie between 17 and 24.
Licence of the weights: none is stated on the model card; CLIP ViT-H/14 by LAION, which they were tuned from, is MIT.
Memory: 4 GB in float32, half of it in half precision; about 1.5 GB more for a batch of 16.
Cannot judge: counts, positions and attributes exactly, as any CLIP; pictures unlike those of 2023's diffusion models.
It prefers saturated, detailed, centred pictures, and training on it alone ends there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r3_rl.rewards.through_clip import ThroughClip
from r3_rl.scoring.base import ScorerInfo

_CARD = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""Whose tokenizer and preprocessing the model card takes."""


@dataclass(kw_only=True, eq=False)
class PickScore(ThroughClip):
    """published = s cos(image, prompt), s the logit scale; score = clip((published - low) / (high - low), 0, 1).

    `processor` is a hub id or folder of tokenizer and preprocessing; empty takes the model card's, or `weights` where
    that is a folder. The other parameters are those of `clip_score`.
    """

    figure = "PickScore"
    info = ScorerInfo(
        range=(0.0, 1.0),
        needs=("images",),
        deterministic=True,
        weights_licence="none stated (tuned from LAION's CLIP, MIT)",
        thread_safe=False,  # the tokenizer is not
        memory="4 GB in float32",
    )

    weights: str = "yuvalkirstain/PickScore_v1"
    processor: str = ""

    def tower_options(self) -> dict[str, Any]:
        """Tokenizer and preprocessing, which the model card takes from elsewhere."""
        here = Path(self.weights).expanduser().exists()
        return {"processor": self.processor or ("" if here else _CARD)}

    def __call__(self, prompts: list[str], images: list[Any], *, log_metric=None, log_extra=None) -> list[float | None]:
        """Score each image, uint8 [H, W, 3], with its prompt."""
        published = [self._towers.logit_scale * cosine for cosine in self._towers.cosines(images, prompts)]
        return self._scale.scores(published, log_metric=log_metric, log_extra=log_extra)
