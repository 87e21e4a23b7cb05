"""How much do people like this picture, whatever it was to show?

Source: LAION's improved aesthetic predictor, `sac+logos+ava1-l14-linearMSE` (github.com/christophschuhmann): a stack of
linear layers on the unit vector of OpenAI's CLIP ViT-L/14, fitted to ratings from 1 to 10.
Range: 0 to 1 for the published 0 to 10; real pictures lie between 4 and 7.
Licence of the weights: Apache-2.0 (head), MIT (CLIP). The head is published as a pickle; convert it once, which runs no
code of its:

    python -m r3_rl.rewards.convert_weights sac+logos+ava1-l14-linearMSE.pth aesthetic.safetensors

Memory: 1.7 GB in float32, half of it in half precision; the head is 4 MB.
Cannot judge: the prompt, which it never sees: trained alone it ends in one pretty picture for every prompt. It likes
shallow focus, warm light, portraits and landscapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r3_rl.errors import CheckpointError
from r3_rl.rewards.through_clip import ThroughClip
from r3_rl.scoring.base import ScorerInfo

if TYPE_CHECKING:
    import torch

# The places between them were dropout. LAION's heads with activations have other numbers, and are refused by them.
_LAYERS = tuple(f"layers.{number}" for number in (0, 2, 4, 6, 7))


@dataclass(kw_only=True, eq=False)
class Aesthetic(ThroughClip):
    """published = L5(L4(L3(L2(L1(e))))), e the unit vector; score = clip((published - low) / (high - low), 0, 1)

    `head` is the converted file; `weights` are those of the CLIP model that it was fitted on, by hub id or folder. The
    other parameters are those of `clip_score`.
    """

    figure = "aesthetic"
    info = ScorerInfo(
        range=(0.0, 1.0),
        needs=("images",),
        deterministic=True,
        weights_licence="Apache-2.0 (head), MIT (CLIP)",
        thread_safe=False,  # two calls at once would need twice the memory
        memory="1.7 GB in float32",
    )

    head: str
    weights: str = "openai/clip-vit-large-patch14"
    high: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._head = read_head(self.head, width=self._towers.width)

    def __call__(self, images: list[Any], *, log_metric=None, log_extra=None) -> list[float | None]:
        """Score each image, uint8 [H, W, 3]."""
        published = self._head(self._towers.images(images)).squeeze(-1).tolist() if len(images) else []
        return self._scale.scores(published, log_metric=log_metric, log_extra=log_extra)


def read_head(path: str | Path, *, width: int) -> torch.nn.Sequential:
    """Return LAION's stack of linear layers, float32 [N, width] -> [N, 1], from a safetensors file.

    Raises `CheckpointError` for a file that is none, other layers, or layers that do not fit `width` or one another.
    """
    import torch

    from r3_rl.rewards.convert_weights import read_safetensors

    tensors = read_safetensors(path)
    expected = {f"{layer}.{kind}" for layer in _LAYERS for kind in ("weight", "bias")}
    if set(tensors) != expected:
        other = sorted(set(tensors) ^ expected)
        raise CheckpointError(f"{path} is not a head of the kind 'linearMSE': the difference starts at {other[0]}")
    stack = torch.nn.Sequential()
    for layer in _LAYERS:
        stack.append(_linear(tensors, layer, width, path))
        width = tensors[f"{layer}.weight"].shape[0]
    if width != 1:
        raise CheckpointError(f"{path}: the last layer gives {width} numbers instead of one")
    return stack.eval().requires_grad_(False)


def _linear(tensors: Mapping[str, torch.Tensor], layer: str, width: int, path: str | Path) -> torch.nn.Linear:
    import torch

    weight, bias = tensors[f"{layer}.weight"].float(), tensors[f"{layer}.bias"].float()
    if weight.dim() != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
        raise CheckpointError(
            f"{path}: {layer} is {list(weight.shape)} and takes no vectors of {width}",
            hint="`weights` must be the CLIP model that the head was fitted on, ViT-L/14 for LAION's",
        )
    linear = torch.nn.Linear(width, weight.shape[0])
    linear.load_state_dict({"weight": weight, "bias": bias})
    return linear
