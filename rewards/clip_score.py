"""How near are a picture and its prompt in the space of CLIP?

Source: CLIPScore (Hessel et al., EMNLP 2021), in torchmetrics' scaling, 100 max(cos, 0). The paper has 2.5 instead
of 100 and puts "A photo depicts" before the caption, which we do not.
Range: 0 to 1 for the published 0 to 100; real pictures lie between 15 and 40.
Licence of the weights: MIT for OpenAI's models, the default; others have their own.
Memory: 1.7 GB in float32 with ViT-L/14, half of it in half precision; about 1 GB more for a batch of 16.
Cannot judge: how many objects there are, which is left of which, and which colour belongs to what: CLIP reads a prompt
much like a bag of words, and sees 224 x 224 pixels. It reads at most 77 tokens. Painted words raise it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from r3_rl.rewards.through_clip import ThroughClip
from r3_rl.scoring.base import ScorerInfo


@dataclass(kw_only=True, eq=False)
class ClipScore(ThroughClip):
    """published = 100 max(cos(image, prompt), 0); score = clip((published - low) / (high - low), 0, 1).

    `weights` is a hub id, a folder, or open_clip's `name:tag`; `revision` a commit on the hub. With `device: auto` an
    accelerator is used where there is one. Raises `CheckpointError`, `MissingPackageError` or `InputError` when built.
    """

    figure = "CLIPScore"
    info = ScorerInfo(
        range=(0.0, 1.0),
        needs=("images",),
        deterministic=True,
        weights_licence="MIT (OpenAI CLIP)",
        thread_safe=False,  # the tokenizer is not
        memory="1.7 GB in float32",
    )

    weights: str = "openai/clip-vit-large-patch14"

    def __call__(self, prompts: list[str], images: list[Any], *, log_metric=None, log_extra=None) -> list[float | None]:
        """Score each image, uint8 [H, W, 3], with its prompt."""
        published = [100.0 * max(cosine, 0.0) for cosine in self._towers.cosines(images, prompts)]
        return self._scale.scores(published, log_metric=log_metric, log_extra=log_extra)
