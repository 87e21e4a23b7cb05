"""GenEval's colours: CLIP, zero-shot over ten names, on an object cut out of its image.

Everything outside the object's mask is painted #999 and the image is cut to the object's box; a colour is the mean of
three sentences' embeddings. Source: GenEval's evaluation code. Weights come from open_clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r3_rl.errors import CheckpointError, MissingPackageError, ScorerError
from r3_rl.rewards.geneval_detector import computing_in
from r3_rl.rewards.geneval_request import COLOURS
from r3_rl.rewards.geneval_rules import Detection

if TYPE_CHECKING:
    import numpy as np
    import torch

BACKGROUND = (0x99, 0x99, 0x99)
SENTENCES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")


def cut_out(image: np.ndarray, detection: Detection) -> np.ndarray:
    """Cut an object out of a uint8 image [H, W, 3]: its box, grey where its mask is not.

    >>> import numpy as np
    >>> mask = np.zeros((4, 4), dtype=bool)
    >>> mask[1, 1] = mask[2, 2] = True
    >>> red = np.full((4, 4, 3), (255, 0, 0), dtype=np.uint8)
    >>> cut_out(red, Detection(box=(1.0, 1.0, 3.0, 3.0), score=1.0, mask=mask))[..., 0].tolist()
    [[255, 153], [153, 255]]
    """
    import numpy as np

    x1, y1, x2, y2 = (round(side) for side in detection.box)
    part, mask = image[y1:y2, x1:x2], detection.mask[y1:y2, x1:x2]
    return np.where(mask[..., None], part, np.array(BACKGROUND, dtype=np.uint8))


class ColourNamer:
    """Names the colours of objects.

    `model` is an open_clip architecture whose weights `pretrained` names (a tag or a file), or `local-dir:FOLDER` or
    `hf-hub:OWNER/NAME`, which bring their weights. Raises `MissingPackageError` and `CheckpointError`.
    """

    def __init__(self, *, model: str, pretrained: str, device: torch.device, dtype: str, batch_size: int = 64) -> None:
        self._device = device
        self._dtype = dtype
        self._batch_size = batch_size
        self._model, self._preprocess, self._tokenizer = _load(model, pretrained)
        self._model.to(device).eval()
        self._classifiers: dict[str, torch.Tensor] = {}

    def name(self, objects: Sequence[np.ndarray], names: Sequence[str]) -> list[str]:
        """Return the colour of each object, uint8 [h, w, 3] as `cut_out` gives it; `names` are their classes."""
        import torch
        from PIL import Image

        colours: list[str] = []
        for start in range(0, len(objects), self._batch_size):
            part = objects[start : start + self._batch_size]
            pixels = torch.stack([self._preprocess(Image.fromarray(item)) for item in part]).to(self._device)
            with torch.inference_mode(), computing_in(self._dtype, self._device):
                features = self._model.encode_image(pixels, normalize=True).float()
            if not bool(features.isfinite().all()):
                raise ScorerError("the colour classifier's features are not finite", hint="set dtype: float32")
            for feature, name in zip(features, names[start : start + len(part)], strict=True):
                colours.append(COLOURS[int((feature @ self._classifier(name)).argmax())])
        return colours

    def _classifier(self, name: str) -> torch.Tensor:
        """[features, colours] for a class, made once."""
        if name not in self._classifiers:
            import torch
            from open_clip import build_zero_shot_classifier

            sentences = [lambda colour, s=sentence: s.format(colour=colour, name=name) for sentence in SENTENCES]
            with torch.inference_mode(), computing_in(self._dtype, self._device):
                weights = build_zero_shot_classifier(
                    self._model, self._tokenizer, COLOURS, sentences, device=self._device
                )
            self._classifiers[name] = weights.float()
        return self._classifiers[name]


def wants_quick_gelu(model: str, pretrained: str) -> bool:
    """Whether weights were trained with the quick approximation of GELU, which the architecture's name may not say.

    GenEval asks for `ViT-L-14` with OpenAI's weights, which need it; open_clip 3 then warns and computes with another.
    """
    from open_clip.pretrained import get_pretrained_cfg

    return bool(get_pretrained_cfg(model.replace("/", "-"), pretrained).get("quick_gelu"))


def _load(model: str, pretrained: str) -> tuple[Any, Any, Any]:
    try:
        from r3_rl.torchvision_guard import guard

        guard()
        import open_clip
    except ImportError as error:
        hint = "pip install 'r3-rl[train,clip]'"
        raise MissingPackageError(f"scorer 'geneval' needs {error.name or 'open_clip'}", hint=hint) from error
    brings_weights = model.startswith(("local-dir:", "hf-hub:"))
    try:
        clip, preprocess = open_clip.create_model_from_pretrained(
            model,
            pretrained=None if brings_weights else pretrained,
            force_quick_gelu=not brings_weights and wants_quick_gelu(model, pretrained),
        )
        return clip, preprocess, open_clip.get_tokenizer(model)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "give `clip` and `clip_pretrained` as open_clip knows them, or `clip: local-dir:FOLDER`"
        if Path(model).is_dir():
            hint = f"write `clip: local-dir:{model}`"
        raise CheckpointError(f"scorer 'geneval': no CLIP weights for '{model}': {first}", hint=hint) from error
