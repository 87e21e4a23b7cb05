"""What the runs of a study measured: figures of an arm over its seeds, and one arm against another, paired."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from r3_rl.observe.common_items import ItemValues
from r3_rl.observe.evaluation import Evaluation
from r3_rl.observe.history import History, Series
from r3_rl.observe.recorder import read_lines
from r3_rl.observe.statistics import Interval, mean_of, over_seeds
from r3_rl.study.arms import Arm
from r3_rl.study.plan import MEASURED, Job


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A mean over seeds, or a difference of two."""

    mean: float
    per_seed: tuple[float, ...]
    over_seeds: Interval | None
    """Student's 95 % interval over the seeds; None with one seed."""
    over_items: Interval | None
    """Bootstrap interval over the items, each with all its seeds; None where the seeds have other items (a policy's own
    drafts)."""

    @property
    def clear(self) -> bool:
        """Whether no interval holds zero, and there is one over seeds that differ."""
        known = [interval for interval in (self.over_seeds, self.over_items) if interval is not None]
        return len(set(self.per_seed)) > 1 and all(interval.excludes_zero for interval in known)


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One finished run."""

    folder: Path
    seed: int

    @cached_property
    def evaluation(self) -> Evaluation:
        """Figures before and after."""
        return Evaluation.from_document(json.loads((self.folder / "evaluation.json").read_text(encoding="utf-8")))

    @cached_property
    def values(self) -> ItemValues:
        """The same item by item."""
        return ItemValues.read(self.folder)

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """What `summary.json` says of the run."""
        found: Mapping[str, Any] = json.loads((self.folder / MEASURED).read_text(encoding="utf-8"))
        return found

    @cached_property
    def history(self) -> History:
        """Its metrics step by step."""
        return History(read_lines(self.folder / "metrics.jsonl").rows)

    def mean(self, name: str, phase: str) -> float | None:
        """A figure `before` or `after` training; None if it was not measured."""
        found = (self.evaluation.after if phase == "after" else self.evaluation.before).get(name)
        return None if found is None else found.mean


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmRuns:
    """An arm with its finished runs."""

    arm: Arm
    runs: Mapping[int, Run]
    """By seed."""

    def level(self, name: str, phase: str) -> Effect | None:
        """A figure before or after training; None unless every run has it."""
        chosen = list(self.runs.values())
        means = [run.mean(name, phase) for run in chosen]
        return _effect(means, _matrix(chosen, name, phase))

    def change(self, name: str) -> Effect | None:
        """A figure after - before training."""
        chosen = list(self.runs.values())
        means = [_minus(run.mean(name, "after"), run.mean(name, "before")) for run in chosen]
        return _effect(means, _difference(_matrix(chosen, name, "before"), _matrix(chosen, name, "after")))

    def minus(self, other: ArmRuns, name: str, phase: str = "after") -> Effect | None:
        """This arm - another one, over the seeds and the items that both have."""
        seeds = [seed for seed in self.runs if seed in other.runs]
        mine, its = ([arm.runs[seed] for seed in seeds] for arm in (self, other))
        means = [_minus(a.mean(name, phase), b.mean(name, phase)) for a, b in zip(mine, its, strict=True)]
        if any(a.values.items != b.values.items for a, b in zip(mine, its, strict=True)):
            return _effect(means, None)
        return _effect(means, _difference(_matrix(its, name, phase), _matrix(mine, name, phase)))

    def total(self, metric: str, *, last: bool = False) -> float | None:
        """A metric summed over the steps, or its last value, averaged over the runs; None if no run has it."""
        found = [run.history.series(metric).values for run in self.runs.values()]
        known = [float(values[-1] if last else values.sum()) for values in found if len(values)]
        return sum(known) / len(known) if known else None

    def curve(self, metric: str) -> Series:
        """A metric over the steps, averaged over the runs that have it in a step."""
        found: dict[int, list[float]] = {}
        for run in self.runs.values():
            series = run.history.series(metric)
            for step, value in zip(series.steps.tolist(), series.values.tolist(), strict=True):
                found.setdefault(step, []).append(value)
        steps = sorted(found)
        return Series(steps=np.array(steps, dtype=np.int64), values=np.array([np.mean(found[step]) for step in steps]))


def finished(jobs: Sequence[Job]) -> list[ArmRuns]:
    """The arms that have a finished run, in the order of the jobs."""
    found: dict[str, tuple[Arm, dict[int, Run]]] = {}
    for job in jobs:
        if folder := job.done:
            found.setdefault(job.arm.name, (job.arm, {}))[1][job.seed] = Run(folder=folder, seed=job.seed)
    return [ArmRuns(arm=arm, runs=runs) for arm, runs in found.values()]


def _effect(means: Sequence[float | None], items: np.ndarray | None) -> Effect | None:
    known = tuple(mean for mean in means if mean is not None)
    if not known or len(known) < len(means):
        return None
    return Effect(
        mean=sum(known) / len(known),
        per_seed=known,
        over_seeds=over_seeds(known) if len(known) > 1 else None,
        over_items=mean_of(items.mean(axis=1).tolist()) if items is not None and len(items) else None,
    )


def _matrix(runs: Sequence[Run], name: str, phase: str) -> np.ndarray | None:
    """Values [items, seeds]; None unless all runs have the same items and a value for each."""
    columns = [run.values.of(name, phase) for run in runs]
    if not columns or not columns[0] or len({len(column) for column in columns}) > 1:
        return None
    if any(run.values.items != runs[0].values.items for run in runs):
        return None
    return np.array(columns, dtype=np.float64).T


def _difference(before: np.ndarray | None, after: np.ndarray | None) -> np.ndarray | None:
    return None if before is None or after is None or before.shape != after.shape else after - before


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other
