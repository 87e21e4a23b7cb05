"""What an item bench is: items that are measured in batches, so that finished ones are kept and processes share them.

A bench of your own is a class with these methods and an entry point under `r3_rl.item_benches`: a function of a
`Request` that returns a list of them. `r3 eval --bench NAME=PATH` calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from r3_rl.policy.base import Policy
from r3_rl.stages.settings import LoopSettings
from r3_rl.worlds.base import World

GREEDY, SAMPLED = "greedy", "sampled"
BATCH, FEW = 128, 16
"""Items of a batch for the small model of a world, and for others. A batch is kept or made again as one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """With what a batch is measured."""

    policy: Policy
    """Switched to the model that is measured: the base, or with its adapter."""
    loop: LoopSettings
    """How it writes and draws, in the decoding that is measured."""
    decoding: str
    """`greedy` or `sampled`."""
    seed: int
    """0 or more: another one gives other noise, and other words where texts are sampled."""
    rounds: int
    """Refinements at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredImage:
    """An image that was drawn."""

    pixels: np.ndarray
    """uint8 [H, W, 3]."""
    score: float | None
    """None if it has none."""
    whole: bool = False
    """Whether it is kept in its own size, since something is computed from it later; else it is for looking."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """What was measured of one item with one seed."""

    item: str
    """Of the prompt or question: what is resampled for an interval. Several images of a prompt have the same."""
    copy: int = 0
    """Which of the images of a prompt."""
    values: Mapping[str, float]
    """By name; a value that does not apply is absent (the repair of a right draft), never 0."""
    shown: Mapping[str, Any]
    """What a reader wants to see, as JSON: prompt, question, texts."""
    images: Mapping[str, ScoredImage] = field(default_factory=dict)
    """By name, such as `round_0`."""


class Sums(Protocol):
    """Sums over resampled items, one for each resample: what a formula is computed from."""

    def sum(self, name: str) -> np.ndarray:
        """Return the sums [B] of a value."""
        ...

    def mean(self, name: str) -> np.ndarray:
        """Return the means [B] of a value; NaN without items."""
        ...


Formula = Callable[[Sums], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A row of the table."""

    name: str
    """Without a formula, the value whose mean it is."""
    label: str
    hint: str = ""
    group: str = ""
    """Heading above it."""
    unit: str = "share"
    """`share` (shown in per cent), `change` (of shares, signed), `number`, or `distance`, which has no interval."""
    wanted: str = "more"
    """`more`, `less` or `neither`."""
    formula: Formula | None = None
    """A function of sums, for what is not a mean (F1, a mean over tasks)."""
    headline: bool = False


class ItemBench(Protocol):
    """What is measured of a model, item by item. It holds items and settings, and no results."""

    @property
    def name(self) -> str:
        """Unique among the benches of an evaluation; a folder name."""
        ...

    @property
    def title(self) -> str:
        """As people say it."""
        ...

    @property
    def decodings(self) -> Sequence[str]:
        """In which it is measured, greedy first."""
        ...

    @property
    def draws(self) -> bool:
        """Whether it draws, so that another seed gives other samples even with greedy texts."""
        ...

    @property
    def items(self) -> Sequence[str]:
        """What each item asks, in order: equal ones make evaluations comparable."""
        ...

    @property
    def batch(self) -> int:
        """Items of a batch."""
        ...

    @property
    def facts(self) -> Mapping[str, str]:
        """Its protocol, for the table: source, prompt template, judge."""
        ...

    def measure(self, job: Job, batch: slice) -> list[Sample]:
        """Measure a batch of the items, at least one sample for each. Equal jobs give equal samples."""
        ...

    def figures(self, names: Sequence[str]) -> list[Figure]:
        """Return the rows of the table, of the values that were measured."""
        ...


@runtime_checkable
class ComparesSets(Protocol):
    """A bench that also compares all images of a model with others, when the last batch is finished."""

    def distances(self, drawn: Sequence[Mapping[str, Path]]) -> dict[Figure, float]:
        """Return figures of a whole set, from the image files of each sample by name."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """What a bench is made for."""

    name: str
    """As it was asked for."""
    path: Path | None
    """Of its files; None if none was given."""
    tags: Sequence[str] | None
    """The kinds of prompts that the model was trained on, by the recipe beside it; None for all of a world's."""
    world: World[Any] | None
    """Whose words the model speaks; None for a model of an open vocabulary."""
    rounds: Sequence[int] = (0, 1, 2, 3)
    """Edit budgets that are reported, in ascending order."""
    limit: int | None = None
    """Most items of a set."""
    scorers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By bench: `scorer` and `params`, as a recipe's `rewards` has them."""


def batch_of(request: Request) -> int:
    """Return how many items a batch has: with a small model more of them cost hardly more, with a large one a batch is
    long enough and memory is short."""
    return FEW if request.world is None else BATCH


def batches(bench: ItemBench) -> list[slice]:
    """Return the batches of a bench: the same whichever process measures them.

    >>> from types import SimpleNamespace
    >>> [(b.start, b.stop) for b in batches(SimpleNamespace(items="abcde", batch=2))]
    [(0, 2), (2, 4), (4, 5)]
    """
    count = len(bench.items)
    return [slice(start, min(start + bench.batch, count)) for start in range(0, count, bench.batch)]
