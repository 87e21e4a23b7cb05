"""GenEval's detector: objects with masks, from an instance segmentation model of the Mask2Former family.

Size of the input, choice of detections, their scores and boxes follow the published set-up (MMDetection's Mask2Former):
800 pixels on the short side and at most 1,333 on the long one, padded to a multiple of 32; the 100 best pairs of query
and class; score = probability of the class x mean probability of the mask's own pixels at the image's resolution.
Weights come from transformers. Its settings for them squash every image to 384 x 384, and so does its post-processing
with the masks; neither is used.

Shapes: Q queries, C classes, N detections, h and w of the model's masks, H and W of the image.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from r3_rl.errors import CheckpointError, MissingPackageError, ScorerError
from r3_rl.rewards.geneval_rules import Detection
from r3_rl.rewards.hub_files import hub_folder

if TYPE_CHECKING:
    import numpy as np
    import torch

MOST_DETECTIONS = 100
_DIVISOR = 32
_FAMILY = ("mask2former", "maskformer")
_OTHER_NAMES = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "hair dryer": "hair drier",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}
"""What label files call a class that GenEval calls otherwise."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """One image's way through the detector; every pair is height, width in pixels."""

    image: tuple[int, int]
    resized: tuple[int, int]
    """What the model looks at."""
    padded: tuple[int, int]
    """The same with empty pixels to the right and below."""


def geometry_of(height: int, width: int, short_side: int, long_side: int) -> Geometry:
    """Scale to `short_side` without passing `long_side`, then pad.

    >>> geometry_of(1024, 1024, 800, 1333).padded, geometry_of(500, 2000, 800, 1333)
    ((800, 800), Geometry(image=(500, 2000), resized=(333, 1333), padded=(352, 1344)))
    """
    scale = min(long_side / max(height, width), short_side / min(height, width))
    resized = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
    padded = (math.ceil(resized[0] / _DIVISOR) * _DIVISOR, math.ceil(resized[1] / _DIVISOR) * _DIVISOR)
    return Geometry(image=(height, width), resized=resized, padded=padded)


class MaskDetector:
    """An instance segmentation model with COCO's labels.

    `weights` is a name on the hub or a folder; `revision` a branch, tag or commit of it; `dtype` what the forward pass
    computes in (weights stay float32). Raises `MissingPackageError` and `CheckpointError`.
    """

    def __init__(
        self,
        *,
        weights: str,
        revision: str | None,
        device: torch.device,
        dtype: str,
        short_side: int = 800,
        long_side: int = 1333,
        batch_size: int = 8,
    ) -> None:
        self._device = device
        self._dtype = dtype
        self._sides = (short_side, long_side)
        self._batch_size = batch_size
        self._processor, self._model = _load(weights, revision)
        self._model.to(device).eval()
        labels = self._model.config.id2label
        self._labels = [_OTHER_NAMES.get(labels[i], labels[i]) for i in range(len(labels))]

    @property
    def classes(self) -> frozenset[str]:
        """What it can see, in GenEval's words."""
        return frozenset(self._labels)

    def detect(self, images: Sequence[np.ndarray], least: float) -> list[dict[str, list[Detection]]]:
        """Find the objects above the score `least` in uint8 images [H, W, 3], by class.

        Images of one size share a forward pass; unlike sizes do not, because padding would change what is seen.
        """
        by_geometry: dict[Geometry, list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            by_geometry[geometry_of(*image.shape[:2], *self._sides)].append(index)
        found: list[dict[str, list[Detection]]] = [{} for _ in images]
        for geometry, indices in by_geometry.items():
            for start in range(0, len(indices), self._batch_size):
                part = indices[start : start + self._batch_size]
                for index, seen in zip(part, self._forward([images[i] for i in part], geometry, least), strict=True):
                    found[index] = seen
        return found

    def _forward(self, images: list[np.ndarray], geometry: Geometry, least: float) -> list[dict[str, list[Detection]]]:
        import torch

        inputs = self._processor(
            images=images,
            input_data_format="channels_last",
            do_resize=True,
            size={"height": geometry.resized[0], "width": geometry.resized[1]},
            size_divisor=0,  # it would stretch the image instead of padding it
            return_tensors="pt",
        )
        (height, width), (full_height, full_width) = geometry.resized, geometry.padded
        pixels = torch.nn.functional.pad(inputs["pixel_values"], (0, full_width - width, 0, full_height - height))
        with torch.inference_mode():
            with computing_in(self._dtype, self._device):
                output = self._model(pixel_values=pixels.to(self._device))
            class_logits, mask_logits = output.class_queries_logits.float(), output.masks_queries_logits.float()
            if not bool(class_logits.isfinite().all()):
                raise ScorerError("the detector's scores are not finite numbers", hint="set dtype: float32")
            rows = zip(class_logits, mask_logits, strict=True)
            return [self._by_class(found_in(classes, masks, geometry, least)) for classes, masks in rows]

    def _by_class(self, found: list[tuple[int, Detection]]) -> dict[str, list[Detection]]:
        named: dict[str, list[Detection]] = {}
        for label, detection in found:
            named.setdefault(self._labels[label], []).append(detection)
        return named


def found_in(
    class_logits: torch.Tensor, mask_logits: torch.Tensor, geometry: Geometry, least: float
) -> list[tuple[int, Detection]]:
    """Read (label, detection) out of one image's class_logits [Q, C + 1] (no object last) and mask_logits [Q, h, w].

    A box reaches from the mask's first pixel to the one after its last, as in the published set-up.
    """
    import numpy as np

    num_classes = class_logits.shape[1] - 1
    scores = class_logits.softmax(dim=-1)[:, :-1].flatten()
    best = scores.topk(min(MOST_DETECTIONS, scores.numel()))
    # The mask's part of the score is at most 1, so what is too low already needs no mask at full size.
    chosen = best.indices[best.values > least]
    if not len(chosen):
        return []
    masks_NHW = _at_image_size(mask_logits[chosen // num_classes], geometry)
    inside_NHW = masks_NHW > 0
    area_N = inside_NHW.flatten(1).sum(1)
    scores_N = scores[chosen] * (masks_NHW.sigmoid() * inside_NHW).flatten(1).sum(1) / (area_N + 1e-6)
    found = []
    for label, score, mask in zip(
        (chosen % num_classes).tolist(), scores_N.tolist(), inside_NHW.cpu().numpy(), strict=True
    ):
        if score > least:
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
            found.append((label, Detection(box=box, score=score, mask=mask)))
    return found


def computing_in(dtype: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which a forward pass computes in `dtype`; weights stay as they are."""
    import torch

    return torch.autocast(device.type, dtype=getattr(torch, dtype), enabled=dtype != "float32")


def _at_image_size(masks: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    from torch.nn.functional import interpolate

    height, width = geometry.resized
    masks = interpolate(masks[None], size=geometry.padded, mode="bilinear", align_corners=False)
    return interpolate(masks[..., :height, :width], size=geometry.image, mode="bilinear", align_corners=False)[0]


def _load(weights: str, revision: str | None) -> tuple[Any, Any]:
    try:
        from r3_rl.torchvision_guard import guard

        guard()
        import scipy  # noqa: F401  the model's loss, which is built with it, looks for scipy
        import torch
        import torchvision  # noqa: F401  without it transformers falls back to a processor with other pixels
        from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation
    except ImportError as error:
        hint = "pip install 'r3-rl[train,clip]'"
        raise MissingPackageError(f"scorer 'geneval' needs {error.name or 'transformers'}", hint=hint) from error
    try:
        folder = hub_folder(weights, revision, pickled=True)  # transformers reads tensors alone out of a pickle
        processor = AutoImageProcessor.from_pretrained(folder)
        model, report = AutoModelForUniversalSegmentation.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"scorer 'geneval': no detector in '{weights}': {first}",
            hint="give `detector` the name of a Mask2Former with COCO's instance labels, or a folder that holds one",
        ) from error
    if model.config.model_type not in _FAMILY:
        raise CheckpointError(
            f"scorer 'geneval': '{weights}' is a {model.config.model_type}", hint=f"it must be a {' or '.join(_FAMILY)}"
        )
    # Fresh random weights would find nothing, and every image would score 0.
    needed = {name for name, _ in model.named_parameters()}
    missing = sorted(name for name in report["missing_keys"] if name in needed)
    if missing:
        raise CheckpointError(
            f"scorer 'geneval': '{weights}' lacks {len(missing)} of the detector's weights, first {missing[0]}",
            hint="is it a checkpoint of the whole model?",
        )
    return processor, model
