"""COCO captions: an image for each caption, its CLIPScore, and how far the set is from COCO's own images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from r3_rl.benches.base import Figure, ItemBench, Job, Request, Sample, batch_of
from r3_rl.benches.distances import check_weights, clip_embedder, cmmd, frechet_and_kernel, inception
from r3_rl.benches.drawing import DrawingBench
from r3_rl.benches.judged import Judge
from r3_rl.benches.published import COCO, field, find_image, given_path, missing, read_json
from r3_rl.errors import DataError
from r3_rl.recipe import RewardSection
from r3_rl.types import Prompt

MOST = 30_000
"""Captions of the usual protocol, one an image."""
GROUP = "Distance from COCO's images (no intervals)"
CAPTIONS = "captions_val2014.json"
SCORER = "clip_score"
NOT_MEASURED = "not measured: no weights given"
_KEPT = ("score_", "images_", "unscored")
"""Values that say something without a right and a wrong."""


def coco(request: Request) -> list[ItemBench]:
    """Return COCO's captions; `path` is the folder of `captions_val2014.json` and `val2014/`.

    `--scorers` names the scorer of CLIPScore and, under `distances`, the weights of Inception (FID, KID) and of CLIP
    (CMMD); what has no weights is not measured.

    Raises:
        InputError: files or weights that are missing; the line says what to fetch and where to name it.
    """
    folder = given_path(request, COCO)
    chosen = dict(request.scorers.get(COCO.name, {}))
    weights = chosen.pop("distances", {})
    check_weights(weights, "--scorers: coco.distances")
    section = RewardSection.model_validate({"scorer": SCORER, "params": {}, **chosen})
    captions = _captions(folder, request.limit)
    drawing = DrawingBench(
        name=COCO.name,
        title="COCO captions",
        prompts=[Prompt(text=text) for text, _ in captions],
        verdicts=Judge(section, COCO.name),
        rounds=request.rounds,
        batch=batch_of(request),
        graded=True,
        redraw=False,
        headline=False,
        decodings=("greedy",),
        facts={
            "captions": "the first of each image, in the order of the file",
            **_judged_by(section.scorer),
            "FID and KID": "torchmetrics, Inception at 299 x 299" if "inception" in weights else NOT_MEASURED,
            "CMMD": str(weights["clip"]) if "clip" in weights else NOT_MEASURED,
            "source": COCO.where,
        },
    )
    return [CocoBench(drawing=drawing, real=[image for _, image in captions], weights=weights)]


@dataclass(frozen=True, kw_only=True, eq=False)
class CocoBench:
    """Captions drawn with the loop, whose images are kept in full size for the distances."""

    drawing: DrawingBench
    real: Sequence[Path]
    """COCO's images of the captions."""
    weights: Mapping[str, Any]
    """`inception` and `clip`, where they are given."""
    draws: bool = True

    @property
    def name(self) -> str:
        """Of the bench."""
        return self.drawing.name

    @property
    def title(self) -> str:
        """As people say it."""
        return self.drawing.title

    @property
    def decodings(self) -> Sequence[str]:
        """Greedy."""
        return self.drawing.decodings

    @property
    def items(self) -> Sequence[str]:
        """The captions."""
        return self.drawing.items

    @property
    def batch(self) -> int:
        """As for other prompts."""
        return self.drawing.batch

    @property
    def facts(self) -> Mapping[str, str]:
        """What reads the images."""
        return self.drawing.facts

    def measure(self, job: Job, batch: slice) -> list[Sample]:
        """Draw a batch; images keep their size."""
        samples = []
        for sample in self.drawing.measure(job, batch):
            values = {name: value for name, value in sample.values.items() if name.startswith(_KEPT)}
            images = {name: replace(image, whole=True) for name, image in sample.images.items()}
            samples.append(replace(sample, values=values, images=images))
        return samples

    def figures(self, names: Sequence[str]) -> list[Figure]:
        """Those that have values: CLIPScore at every budget."""
        return self.drawing.figures(names)

    def distances(self, drawn: Sequence[Mapping[str, Path]]) -> dict[Figure, float]:
        """Return distances of the first and of the last images from COCO's own.

        Args:
            drawn: of each caption, the image files by name, such as `round_0`.
        """
        sets = {"drafts": [images["round_0"] for images in drawn]}
        if self.drawing.rounds[-1]:
            sets["last images"] = [images[f"round_{len(images) - 1}"] for images in drawn]
        found: dict[Figure, float] = {}
        for words, files in sets.items():
            for label, distance in self._measures():
                for name, value in distance(files).items():
                    key = f"{name.lower()}_{'draft' if words == 'drafts' else 'final'}"
                    row = Figure(name=key, label=f"{name}, {words}", hint=label, group=GROUP, unit="distance")
                    found[replace(row, wanted="less")] = value
        return found

    def _measures(self) -> list[tuple[str, Callable[[Sequence[Path]], dict[str, float]]]]:
        """Of those whose weights are given: what is said about them, and files -> distances."""
        measures: list[tuple[str, Callable[[Sequence[Path]], dict[str, float]]]] = []
        count = f"{len(self.real):,} images"
        if "inception" in self.weights:
            extractor = inception(Path(self.weights["inception"]))

            def through_inception(files: Sequence[Path]) -> dict[str, float]:
                found = frechet_and_kernel(self.real, files, extractor)
                return {"FID": found.fid, "KID": found.kid}

            measures.append((count, through_inception))
        if "clip" in self.weights:
            embed = clip_embedder(str(self.weights["clip"]))
            real = embed(self.real)
            measures.append((count, lambda files: {"CMMD": cmmd(real, embed(files))}))
        return measures


def _judged_by(scorer: str) -> dict[str, str]:
    """What judges an image; only CLIPScore is the published measure."""
    if scorer == SCORER:
        return {"CLIPScore": f"scorer {scorer}, 0 to 1 for the published 0 to 100"}
    return {"judge": f"scorer {scorer}, not the published CLIPScore"}


def _captions(folder: Path, limit: int | None) -> list[tuple[str, Path]]:
    """The first caption of each image, and its file."""
    path = folder / CAPTIONS
    if not path.is_file():
        raise missing(path, COCO)
    document = read_json(path, COCO)
    names = {}
    for number, row in enumerate(field(document, "images", list, str(path))):
        place = f"{path}: images[{number}]"
        names[field(row, "id", int, place)] = field(row, "file_name", str, place)
    first: dict[int, str] = {}
    for number, row in enumerate(field(document, "annotations", list, str(path))):
        place = f"{path}: annotations[{number}]"
        image = field(row, "image_id", int, place)
        if image not in names:
            raise DataError(f"{place}: image {image} is not among the images")
        first.setdefault(image, field(row, "caption", str, place).strip())
    if len(first) < 2:
        raise DataError(f"{path}: {len(first)} captions", hint="a distance takes two images or more")
    chosen = list(first.items())[: min(MOST, limit or MOST)]
    folders = [folder / "val2014", folder / "images", folder]
    return [(text, find_image(names[image], folders, COCO, str(path))) for image, text in chosen]
