"""ITA on a pool in files: does this image match its prompt? As the loop asks it: a critique that stops says yes.

A pool is fixed: models that are compared read the same images. `samples.jsonl` of an earlier evaluation is one: the
first images that its first model drew greedily, as many right as wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from r3_rl.benches import published
from r3_rl.benches.asking import open_image
from r3_rl.benches.base import FEW, GREEDY, Figure, ItemBench, Job, Request, Sample, Sums, batch_of
from r3_rl.benches.drawing import OF_A_SEED
from r3_rl.benches.published import ITA, find_image, given_path
from r3_rl.errors import DataError
from r3_rl.evaluate.base import SEED
from r3_rl.evaluate.reflection import FixedDrafts, read
from r3_rl.observe.strip import RIGHT_SCORE
from r3_rl.types import Prompt

SAMPLES = "samples.jsonl"
POOL = "pool.jsonl"


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """An image of a pool."""

    image: Path
    prompt: str
    right: bool


def ita(request: Request) -> list[ItemBench]:
    """Return a pool; `path` is its file, or the folder of `pool.jsonl` or of an earlier evaluation."""
    path = given_path(request, ITA)
    if path.is_dir():
        names = [name for name in (POOL, SAMPLES) if (path / name).is_file()]
        if not names:
            raise published.missing(path / POOL, ITA)
        path = path / names[0]
    found = _of_samples(path) if path.name == SAMPLES else _of_pool(path)
    sides = [[one for one in found if one.right == right] for right in (True, False)]
    half = min(*map(len, sides), *([] if request.limit is None else [request.limit]))
    if half == 0:
        raise DataError(f"{path}: {len(sides[0])} right images and {len(sides[1])} wrong ones", hint="it takes both")
    pool = [one for pair in zip(sides[0], sides[1], strict=False) for one in pair][: 2 * half]
    return [ItaBench(pool=pool, batch=batch_of(request))]


@dataclass(frozen=True, kw_only=True, eq=False)
class ItaBench:
    """Right and wrong images, alternating."""

    pool: Sequence[Pooled]
    name: str = "ita"
    title: str = "Does the image match its prompt? (ITA)"
    decodings: Sequence[str] = (GREEDY,)
    batch: int = FEW
    draws: bool = False
    facts: Mapping[str, str] = field(
        default_factory=lambda: {
            "prompt": "the loop's critique; a stop says that the image is right",
            "pool": "fixed, as many right images as wrong ones",
        }
    )

    @property
    def items(self) -> Sequence[str]:
        """Prompts, labels and files."""
        return [f"{one.prompt}\n{one.right}\n{one.image.name}" for one in self.pool]

    def measure(self, job: Job, batch: slice) -> list[Sample]:
        """Read a batch of images."""
        these = self.pool[batch]
        drafts = FixedDrafts(
            prompts=tuple(Prompt(text=one.prompt) for one in these),
            images=tuple(open_image(one.image) for one in these),
        )
        said = read(job.policy, drafts, job.loop, SEED + OF_A_SEED * job.seed + 8 + batch.start)
        samples = []
        for place, one, critique in zip(range(batch.start, batch.stop), these, said, strict=True):
            hit = float(critique.stop == one.right)
            values = {"ita/right" if one.right else "ita/wrong": hit, "stops": float(critique.stop)}
            shown = {
                "prompt": one.prompt,
                "right": one.right,
                "critique": critique.segment.text,
                "image": one.image.name,
            }
            samples.append(Sample(item=f"{place:05d}", values=values, shown=shown))
        return samples

    def figures(self, names: Sequence[str]) -> list[Figure]:
        """The balanced share, its two sides, and how often it says yes."""

        def balanced(sums: Sums) -> np.ndarray:
            return (sums.mean("ita/right") + sums.mean("ita/wrong")) / 2

        group = "Own and fixed pools"
        return [
            Figure(name="ita", label="ITA", hint="half is chance", group=group, formula=balanced, headline=True),
            Figure(name="ita/right", label="… right images", hint="stops", group=group),
            Figure(name="ita/wrong", label="… wrong images", hint="does not stop", group=group),
            Figure(name="stops", label="Stops", hint="half is right", group=group, wanted="neither"),
        ]


def _of_pool(path: Path) -> list[Pooled]:
    pool = []
    for number, row in published.read_lines(path, ITA):
        place = f"{path}:{number}"
        name = published.field(row, "image", str, place)
        pool.append(
            Pooled(
                image=find_image(name, [path.parent, path.parent / "images"], ITA, place),
                prompt=published.field(row, "prompt", str, place),
                right=published.field(row, "right", bool, place),
            )
        )
    return pool


def _of_samples(path: Path) -> list[Pooled]:
    """The first images of the first model, greedy, first seed."""
    rows = [(number, row) for number, row in published.read_lines(path, ITA) if row.get("rounds")]
    if not rows:
        raise DataError(f"{path}: nothing was drawn in this evaluation")
    first = rows[0][1].get("model")
    pool = []
    for number, row in rows:
        place = f"{path}:{number}"
        if row.get("model") != first or row.get("decoding") != GREEDY or row.get("seed") != 0:
            continue
        score = _score(row, place)
        if score is not None:
            name = published.field(published.field(row, "images", dict, place), "round_0", str, place)
            image = find_image(name, [path.parent], ITA, place)
            right = score >= RIGHT_SCORE
            pool.append(Pooled(image=image, prompt=published.field(row, "prompt", str, place), right=right))
    return pool


def _score(row: Mapping[str, Any], place: str) -> float | None:
    score = published.field({"round": row["rounds"][0]}, "round", dict, place).get("score")
    return float(score) if isinstance(score, int | float) else None
