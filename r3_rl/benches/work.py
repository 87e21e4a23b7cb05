"""The batches of an evaluation: measured once, kept by file, shared by the processes.

A batch is a bench, a model, a decoding, a seed and some items. It is the same batch however many processes there are
and whatever was finished before, so that sums are rounded the same way and every table is equal to the last byte.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from r3_rl import ranks
from r3_rl.benches.base import GREEDY, ItemBench, Job, Sample, ScoredImage, batches
from r3_rl.benches.subjects import Subject
from r3_rl.observe.progress import RunProgress
from r3_rl.observe.recorder import KEPT_IMAGE_PX

PARTS, IMAGES = "parts", "images"


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """One piece of work."""

    bench: ItemBench
    subject: Subject
    decoding: str
    seed: int
    items: slice

    @property
    def place(self) -> str:
        """Of its images, and of its file, below the output folder."""
        return f"{self.bench.name}/{self.subject.key}/{self.decoding}"

    @property
    def file(self) -> str:
        """Where its samples are kept."""
        return f"{PARTS}/{self.place}/seed-{self.seed}-items-{self.items.start:06d}.jsonl"

    def job(self, policy: Any, rounds: int) -> Job:
        """With what it is measured."""
        own = self.subject.loaded.loop
        loop = own.for_evaluation(0.0) if self.decoding == GREEDY else own
        return Job(policy=policy, loop=loop, decoding=self.decoding, seed=self.seed, rounds=rounds)


def all_batches(benches: Sequence[ItemBench], subjects: Sequence[Subject], num_seeds: int) -> list[Batch]:
    """Return every batch in the order of the samples' file. Greedy texts about given images have one seed: others would
    give the same."""
    return [
        Batch(bench=bench, subject=subject, decoding=decoding, seed=seed, items=items)
        for bench in benches
        for subject in subjects
        for decoding in bench.decodings
        for seed in range(num_seeds if bench.draws or decoding != GREEDY else 1)
        for items in batches(bench)
    ]


def measure(todo: Sequence[Batch], folder: Path, *, rounds: int, title: str) -> None:
    """Measure the batches that are not finished yet; each process takes its turn, the first one shows how it goes."""
    missing = set(ranks.of_first(lambda: _missing(todo, folder)))
    own = [batch for batch in todo if batch.file in missing][ranks.rank() :: ranks.count()]
    with RunProgress(title, total_steps=sum(_count(batch) for batch in own), unit="sample") as progress:
        progress.begin(done := 0)
        for batch in own:
            _measure(batch, folder, rounds)
            done += _count(batch)
            if ranks.rank() == 0:
                progress.update(done, {})
    ranks.everyone(len(own))  # nobody reads before everybody has written


def measure_alone(todo: Sequence[Batch], folder: Path, *, rounds: int) -> None:
    """Measure the batches that are not finished yet, in this process, whatever the others of the run do."""
    missing = set(_missing(todo, folder))
    for batch in todo:
        if batch.file in missing:
            _measure(batch, folder, rounds)


def _missing(todo: Sequence[Batch], folder: Path) -> list[str]:
    return [batch.file for batch in todo if not (folder / batch.file).is_file()]


def _measure(batch: Batch, folder: Path, rounds: int) -> None:
    with batch.subject.policy() as policy:
        samples = batch.bench.measure(batch.job(policy, rounds), batch.items)
    _keep(folder, batch, samples)


def _count(batch: Batch) -> int:
    return batch.items.stop - batch.items.start


def forget(folder: Path, key: str) -> None:
    """Remove what is kept of a model."""
    for kind in (PARTS, IMAGES):
        for kept in (folder / kind).glob(f"*/{key}"):
            shutil.rmtree(kept)


def kept_samples(folder: Path, batch: Batch) -> Iterator[dict[str, Any]]:
    """Read the finished samples of a batch."""
    with (folder / batch.file).open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def sample_of(row: dict[str, Any]) -> Sample:
    """The values of a kept sample."""
    return Sample(item=row["item"], copy=row["copy"], values=row["values"], shown={})


def _keep(folder: Path, batch: Batch, samples: Sequence[Sample]) -> None:
    """Write images, then the file of the samples, aside and renamed: if it is there, they are finished."""
    lines = []
    for sample in samples:
        images = {name: _save(folder, batch, sample, name, image) for name, image in sample.images.items()}
        row = {
            "bench": batch.bench.name,
            "model": batch.subject.key,
            "decoding": batch.decoding,
            "seed": batch.seed,
            "item": sample.item,
            "copy": sample.copy,
            "values": dict(sample.values),
            **sample.shown,
        }
        lines.append(json.dumps(row | ({"images": images} if images else {}), ensure_ascii=False, allow_nan=False))
    path = folder / batch.file
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    with aside.open("w", encoding="utf-8") as stream:
        stream.write("\n".join(lines) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(path)


def _save(folder: Path, batch: Batch, sample: Sample, name: str, scored: ScoredImage) -> str:
    """A PNG in the folder of its score."""
    score = "no-score" if scored.score is None else f"score-{scored.score:.2f}"
    number = sample.item.partition(" ")[0]
    place = f"{IMAGES}/{batch.place}/{score}/{number}-{sample.copy}-seed-{batch.seed}-{name}.png"
    image = Image.fromarray(scored.pixels)
    if not scored.whole and max(image.size) > KEPT_IMAGE_PX:
        image.thumbnail((KEPT_IMAGE_PX, KEPT_IMAGE_PX))
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="PNG")
    return place
