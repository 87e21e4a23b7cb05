"""What a bench is: items, a policy's rows on them, and the figures of the rows; found by name.

A bench of your own is a class with these methods and an entry point under `r3_rl.benches`: a function of a recipe and
sizes that returns it. A world names the bench that is measured in it before and after training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch

from r3_rl import registered
from r3_rl.evaluate.measured import Items, Measured
from r3_rl.observe.course import Metric
from r3_rl.observe.statistics import Interval
from r3_rl.policy.base import Policy
from r3_rl.recipe import Recipe
from r3_rl.types import Prompt, Verdict
from r3_rl.worlds.base import find_world

SEED = 77_001
"""Of held-out items: the same for every run, so that runs can be compared."""
Some = TypeVar("Some", bound=Items)


class Bench(Protocol[Some]):
    """What is measured of a policy. It holds settings and no results: equal items and seeds give equal rows."""

    @property
    def rounds(self) -> int:
        """Refinements at most of the loop on the items' prompts."""
        ...

    def items(self, limit: int | None = None, seed: int = 0) -> Some:
        """Return what is measured on: at most `limit` items of each set. Another seed, 0 or more, gives
        other items."""
        ...

    def run(self, policy: Policy, items: Some) -> Measured:
        """Measure a policy: values item by item. A figure without items is left out."""
        ...

    def figures(self, rows: Measured) -> dict[str, Interval]:
        """Return each figure's value with its 95 % interval and its number of items."""
        ...

    def judge(self, images: Sequence[torch.Tensor], prompts: Sequence[Prompt]) -> list[Verdict]:
        """Return the verdicts on images [n] of [3, H, W] in [0, 1], one for each prompt."""
        ...


class Measures(Protocol):
    """Further benches that a run is measured by. What was measured of the same weights is not measured again."""

    @property
    def metric(self) -> Metric | None:
        """What the best step is told by; None if the run keeps none."""
        ...

    def before(self) -> None:
        """Measure the base."""
        ...

    def during(self, step: int) -> None:
        """Measure the policy after a step."""
        ...

    def read(self, step: int) -> Interval | None:
        """Return the metric of the base (step 0), or of the policy after a step that was measured; None if no item has
        it. Asked of a run that has a metric only."""
        ...

    def after(self, step: int) -> dict[str, Any]:
        """Measure the policy after its last step, and return the figures for `summary.json`."""
        ...


def find_bench(name: str, recipe: Recipe, **sizes: int) -> Bench[Any]:
    """Return a bench by its name.

    Args:
        name: an installed bench.
        recipe: whose loop and data are measured.
        sizes: of its sets, by the names that the bench gives them.

    Raises:
        InputError: an unknown name, with the closest one.
    """
    bench: Bench[Any] = registered.find(registered.BENCHES, name)(recipe, **sizes)
    return bench


def bench_of(recipe: Recipe, **sizes: int) -> Bench[Any] | None:
    """Return the bench that the recipe's world names; None if its prompts come from a file."""
    if recipe.data.world is None:
        return None
    return find_bench(find_world(recipe.data.world).bench, recipe, **sizes)
