"""Which picture would people have preferred, on the broader choices of HPD v2?

Source: Human Preference Score v2 and v2.1 (Wu et al., arXiv 2306.09341): CLIP ViT-H/14 tuned on ranked pictures.
Range: 0 to 1 for the published 0 to 100 (100 times the cosine); real pictures lie between 20 and 35.
Licence of the weights: Apache-2.0. They are published as a pickle; convert it once, which runs no code of theirs:

    hf download xswu/HPSv2 HPS_v2.1_compressed.pt --local-dir .
    python -m r3_rl.rewards.convert_weights HPS_v2.1_compressed.pt HPS_v2.1.safetensors

Memory: 4 GB in float32, half of it in half precision; about 1.5 GB more for a batch of 16.
Cannot judge: counts, positions and attributes exactly, as any CLIP. v2 and v2.1 are different scales: never mix them.
The package `hpsv2` pins old versions of what we need and is not used; pictures are resized as it does, the longer side
to 224 pixels with black bars, so that nothing of a picture is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from r3_rl.rewards.through_clip import ThroughClip
from r3_rl.scoring.base import ScorerInfo


@dataclass(kw_only=True, eq=False)
class HpsV2(ThroughClip):
    """published = 100 cos(image, prompt); score = clip((published - low) / (high - low), 0, 1).

    `weights` is the converted file, or a folder in open_clip's format; `architecture` is open_clip's name for what is
    in the file. The other parameters are those of `clip_score`.
    """

    figure = "HPSv2"
    info = ScorerInfo(
        range=(0.0, 1.0),
        needs=("images",),
        deterministic=True,
        weights_licence="Apache-2.0",
        thread_safe=False,  # the tokenizer is not
        memory="4 GB in float32",
    )

    architecture: str = "ViT-H-14"

    def tower_options(self) -> dict[str, Any]:
        """What is in the file, and how its authors resize."""
        return {"architecture": self.architecture, "resize": "longest"}

    def __call__(self, prompts: list[str], images: list[Any], *, log_metric=None, log_extra=None) -> list[float | None]:
        """Score each image, uint8 [H, W, 3], with its prompt."""
        published = [100.0 * cosine for cosine in self._towers.cosines(images, prompts)]
        return self._scale.scores(published, log_metric=log_metric, log_extra=log_extra)
