"""Does an image show the objects, counts, colours and positions that GenEval's prompt asks for?

Source: Ghosh, Hajishirzi and Schmidt, "GenEval" (2023), its rules and thresholds. Range: 0 to 1.
Licence of the weights: Mask2Former's (Swin-S, COCO instances) are CC BY-NC 4.0 by its authors' list of models, "other"
by the model card on the hub; MIT, since 2022, is the code alone. OpenAI's CLIP ViT-L/14 is MIT.
Memory: 0.3 and 1.7 GB of weights in float32, and the masks of one image at its full size, 4 MB for each of its
detections at 1024 x 1024, several times over.
Cannot judge: anything but COCO's 80 classes, ten colours and four relations; drawings far from photographs; whether the
image is any good. A policy may learn to please the detector: keep another scorer in `eval_rewards`.
The published benchmark uses MMDetection's weights of the same architecture, so its figures are near these, not equal.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakValueDictionary

from r3_rl.errors import DataError, InputError, MissingPackageError
from r3_rl.rewards.geneval_colours import ColourNamer, cut_out
from r3_rl.rewards.geneval_detector import MaskDetector
from r3_rl.rewards.geneval_request import Request, read_request
from r3_rl.rewards.geneval_rules import ColourQuestion, Detections, Judgement, Rules, colour_questions, judge, keep
from r3_rl.scoring.base import ScorerInfo

if TYPE_CHECKING:
    import numpy as np

LogExtra = Callable[[str, list[Any]], None]
LogMetric = Callable[[str, float], None]

# A strict and a partial scorer in one recipe load the weights once; nothing is kept when no scorer needs them any more.
_loaded: WeakValueDictionary[tuple, Any] = WeakValueDictionary()


class GenEval:
    """Score w strict + (1 - w) partial, w = `strict_weight`.

    strict is GenEval's verdict, 1 or 0; partial is the share of what was asked for that is there (see
    `geneval_rules.judge`), 1 exactly when strict is. `strict_weight: 1` is the benchmark, 0 a reward with more steps.

    Columns: `include` and `tag` as in GenEval's prompt files, `exclude` where a prompt has it. A row that the rules
    cannot judge gets no score, and the cause names the entry. Metrics: `strict` and `partial`, means over a call.

    * `detector`, `revision`: a Mask2Former with COCO's instance labels, by its name on the hub or its folder
    * `clip`, `clip_pretrained`: architecture and weights as open_clip knows them, or `local-dir:FOLDER` for the first
    * `device`: `auto` is the GPU where there is one; `dtype`: what the forward passes compute in
    * `short_side`, `long_side`: pixels that the detector sees
    * the rest: see `geneval_rules.Rules`
    """

    # `version` stands for the neighbouring files as well: the key of the cache holds the content of this one alone.
    info = ScorerInfo(
        range=(0.0, 1.0),
        needs=("images", "include"),
        version="1",
        deterministic=True,
        thread_safe=False,
        weights_licence="CC BY-NC 4.0 (Mask2Former), MIT (CLIP)",
        memory="2 GB of weights in float32, and masks",
        packages=("torch", "torchvision", "transformers", "scipy", "open_clip"),
        install="pip install 'r3-rl[train,clip]'",
    )

    def __init__(
        self,
        *,
        strict_weight: float = 1.0,
        detector: str = "facebook/mask2former-swin-small-coco-instance",
        revision: str | None = None,
        clip: str = "ViT-L-14",
        clip_pretrained: str = "openai",
        device: str = "auto",
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        batch_size: int = 8,
        short_side: int = 800,
        long_side: int = 1333,
        threshold: float = 0.3,
        counting_threshold: float = 0.9,
        max_objects: int = 16,
        max_overlap: float = 1.0,
        position_threshold: float = 0.1,
    ) -> None:
        self._rules = Rules(
            threshold=threshold,
            counting_threshold=counting_threshold,
            max_objects=max_objects,
            max_overlap=max_overlap,
            position_threshold=position_threshold,
        )
        own = {"strict_weight": strict_weight, "batch_size": batch_size}
        own |= {"short_side": short_side, "long_side": long_side}
        problems = self.check_params(
            {**own, **{field.name: getattr(self._rules, field.name) for field in fields(Rules)}}
        )
        if problems:
            raise InputError(f"scorer 'geneval': {problems[0]}")
        self._strict_weight = strict_weight
        where = {"device": _device(device), "dtype": dtype}
        sizes = {"batch_size": batch_size, "short_side": short_side, "long_side": long_side}
        self._detector_name = detector
        self._detector = _shared(MaskDetector, weights=detector, revision=revision, **where, **sizes)
        self._colours = _shared(ColourNamer, model=clip, pretrained=clip_pretrained, **where)

    @staticmethod
    def check_params(params: Mapping[str, Any]) -> list[str]:
        """Say what is wrong with parameters before anything loads.

        >>> GenEval.check_params({"strict_weight": 2, "max_objects": 16})
        ['strict_weight = 2 must lie between 0 and 1']
        """
        shares = ("strict_weight", "threshold", "counting_threshold", "max_overlap", "position_threshold")
        counts = ("batch_size", "short_side", "long_side", "max_objects")
        problems = [
            f"{name} = {params[name]} must lie between 0 and 1"
            for name in shares
            if name in params and not 0 <= params[name] <= 1
        ]
        return problems + [
            f"{name} = {params[name]} must be 1 or more" for name in counts if name in params and params[name] < 1
        ]

    def __call__(
        self,
        images: Sequence[Any],
        include: Sequence[Any],
        *,
        tag: Sequence[str | None] | None = None,
        exclude: Sequence[Any] | None = None,
        log_metric: LogMetric | None = None,
        log_extra: LogExtra | None = None,
    ) -> list[float | None]:
        """Score images (uint8 [H, W, 3] or PIL) against their rows."""
        count = len(images)
        tags, excludes = tag or [None] * count, exclude or [None] * count
        causes = [""] * count
        asked: dict[int, Request] = {}
        for index in range(count):
            try:
                asked[index] = self._read(include[index], excludes[index], tags[index])
            except DataError as error:
                causes[index] = str(error)
        judgements = self._judge({index: _pixels(images[index]) for index in asked}, asked)
        if log_extra is not None:
            log_extra("reason", [judgements[i].reason if i in judgements else "" for i in range(count)])
            log_extra("cause", causes)
        if log_metric is not None and judgements:
            log_metric("strict", fmean(j.correct for j in judgements.values()))
            log_metric("partial", fmean(j.partial for j in judgements.values()))
        return [self._score(judgements[index]) if index in judgements else None for index in range(count)]

    def _score(self, judgement: Judgement) -> float:
        return self._strict_weight * judgement.correct + (1 - self._strict_weight) * judgement.partial

    def _read(self, include: Any, exclude: Any, tag: Any) -> Request:
        request = read_request(include, exclude, tag)
        if not isinstance(tag, str):
            raise DataError(f"tag is {tag!r}", hint="the rules need it: another threshold holds for 'counting'")
        if not request.include and not request.exclude:
            raise DataError("include is empty", hint="a prompt that asks for nothing has no score")
        names = [clause.name for clause in request.include] + [name for name, _ in request.exclude]
        for name in names:
            if name not in self._detector.classes:  # it would never be found, and every image would score 0
                near = difflib.get_close_matches(name, self._detector.classes, n=1, cutoff=0.6)
                hint = f"did you mean '{near[0]}'?" if near else "the rules are about COCO's 80 classes"
                raise DataError(f"the detector '{self._detector_name}' does not know the class '{name}'", hint=hint)
        return request

    def _judge(self, pixels: Mapping[int, np.ndarray], asked: Mapping[int, Request]) -> dict[int, Judgement]:
        least = min(self._rules.threshold, self._rules.counting_threshold)
        indices = list(asked)
        seen = dict(zip(indices, self._detector.detect([pixels[i] for i in indices], least), strict=True))
        kept = {index: keep(seen[index], asked[index], self._rules) for index in indices}
        questions = [_Asked(image=i, question=q) for i in indices for q in colour_questions(asked[i], kept[i])]
        answers = self._answer(questions, pixels, seen)
        return {i: judge(asked[i], seen[i], kept[i], answers.get(i, {}), self._rules) for i in indices}

    def _answer(
        self, questions: Sequence[_Asked], pixels: Mapping[int, np.ndarray], seen: Mapping[int, Detections]
    ) -> dict[int, dict[int, list[str]]]:
        """Name the colours that all images need in one go; by image and clause."""
        objects, names = [], []
        for asked in questions:
            name = asked.question.name
            objects += [cut_out(pixels[asked.image], seen[asked.image][name][i]) for i in asked.question.objects]
            names += [name] * len(asked.question.objects)
        colours = iter(self._colours.name(objects, names))
        answers: dict[int, dict[int, list[str]]] = {}
        for asked in questions:
            found = [next(colours) for _ in asked.question.objects]
            answers.setdefault(asked.image, {})[asked.question.clause] = found
        return answers


@dataclass(frozen=True, kw_only=True)
class _Asked:
    image: int
    question: ColourQuestion


def _pixels(image: Any) -> np.ndarray:
    import numpy as np

    pixels = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise DataError(
            f"cannot read an image of {pixels.dtype} {list(pixels.shape)}", hint="give uint8 [H, W, 3] or a PIL image"
        )
    return pixels


def _device(name: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError("scorer 'geneval' needs torch", hint="pip install 'r3-rl[train,clip]'") from error
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(
            f"scorer 'geneval': device '{name}' is none", hint="write auto, cpu, cuda or cuda:1"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"scorer 'geneval': device '{name}', and torch sees no GPU", hint="write device: cpu")
    if device.type == "cuda" and device.index is None:
        # Scorers run in threads of their own, whose current GPU is the first one.
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def _shared(kind: type, **settings: Any) -> Any:
    key = (kind.__name__, *sorted(settings.items(), key=lambda item: item[0]))
    found = _loaded.get(key)
    if found is None:
        found = _loaded[key] = kind(**settings)
    return found
