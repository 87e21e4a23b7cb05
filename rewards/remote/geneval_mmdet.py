"""GenEval with the benchmark's own detector: MMDetection's Mask2Former. Served from an environment of its own.

Source: Ghosh, Hajishirzi and Schmidt, "GenEval" (2023). The rules and the naming of colours are those of the scorer
`geneval`; only the objects come from MMDetection 3.3 and the weights that the benchmark names.
Range: 0 to 1. Licence of the weights: Apache-2.0 (MMDetection's model zoo), MIT (CLIP). Memory: about 2 GB, and masks.
Cannot judge: what `geneval` cannot judge.

The benchmark's published environment (Python 3.9, mmdet 2) is too old for this package, hence mmdet 3 with the same
weights. Written after MMDetection's documentation and not run with it here. Before you quote a figure, score images
whose official verdicts you have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from r3_rl.rewards.geneval import GenEval, _device
from r3_rl.rewards.geneval_colours import ColourNamer
from r3_rl.rewards.geneval_detector import _OTHER_NAMES
from r3_rl.rewards.geneval_rules import Detection, Rules


class MMDetector:
    """Objects with masks from MMDetection, in GenEval's words."""

    def __init__(self, *, config: str, checkpoint: str, device: str) -> None:
        from mmdet.apis import init_detector

        self._model = init_detector(config, checkpoint, device=device)
        self._labels = [_OTHER_NAMES.get(name, name) for name in self._model.dataset_meta["classes"]]

    @property
    def classes(self) -> frozenset[str]:
        """What it can see."""
        return frozenset(self._labels)

    def detect(self, images: Sequence[np.ndarray], least: float) -> list[dict[str, list[Detection]]]:
        """Find the objects above the score `least` in uint8 images [H, W, 3], by class."""
        from mmdet.apis import inference_detector

        # MMDetection reads arrays as OpenCV does: blue first.
        found = [inference_detector(self._model, np.ascontiguousarray(image[..., ::-1])) for image in images]
        return [by_class(sample.pred_instances.cpu().numpy(), self._labels, least) for sample in found]


def by_class(instances: Any, labels: Sequence[str], least: float) -> dict[str, list[Detection]]:
    """Sort instances (fields `bboxes` [N, 4], `scores` [N], `labels` [N], `masks` [N, H, W]) by class.

    >>> from types import SimpleNamespace
    >>> masks = np.ones((2, 4, 4), bool)
    >>> two = SimpleNamespace(bboxes=np.array([[0, 0, 2, 2], [1, 1, 3, 3]]), scores=np.array([0.9, 0.2]),
    ...                       labels=np.array([1, 0]), masks=masks)
    >>> [(name, found[0].box) for name, found in by_class(two, ["dog", "cat"], 0.3).items()]
    [('cat', (0.0, 0.0, 2.0, 2.0))]
    """
    named: dict[str, list[Detection]] = {}
    for box, score, label, mask in zip(
        instances.bboxes, instances.scores, instances.labels, instances.masks, strict=True
    ):
        if score > least:
            x1, y1, x2, y2 = (float(edge) for edge in box)
            detection = Detection(box=(x1, y1, x2, y2), score=float(score), mask=mask.astype(bool))
            named.setdefault(labels[int(label)], []).append(detection)
    return named


class GenEvalMMDet(GenEval):
    """`geneval` with MMDetection's objects: `config` and `checkpoint` are the two files that `mim download` writes."""

    def __init__(
        self,
        *,
        config: str,
        checkpoint: str,
        strict_weight: float = 1.0,
        clip: str = "ViT-L-14",
        clip_pretrained: str = "openai",
        device: str = "auto",
    ) -> None:
        # Not the parent's constructor, which would load a detector of transformers.
        where = _device(device)
        self._rules, self._strict_weight = Rules(), strict_weight
        self._detector_name = checkpoint
        self._detector = MMDetector(config=config, checkpoint=checkpoint, device=str(where))
        self._colours = ColourNamer(model=clip, pretrained=clip_pretrained, device=where, dtype="float32")
