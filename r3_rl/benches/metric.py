"""The figure that a run keeps its best adapter by: found by name before anything is measured, read afterwards."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r3_rl import registered
from r3_rl.benches.base import Figure, ItemBench, Request
from r3_rl.benches.resampling import estimate
from r3_rl.benches.run import measured_values
from r3_rl.benches.subjects import Subject
from r3_rl.benches.work import all_batches
from r3_rl.benches.world import world_benches
from r3_rl.errors import InputError, one_line
from r3_rl.observe.course import Metric
from r3_rl.observe.statistics import Interval
from r3_rl.recipe import Recipe
from r3_rl.worlds.base import World, chosen_tags, find_world

_SHOWN = 8
"""Names that a hint lists: a world's benches have about a hundred."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ChosenFigure:
    """A figure of a bench, and whether it is to rise or to fall."""

    bench: ItemBench
    figure: Figure
    wanted: str
    """`more` or `less`."""

    def metric(self, marks: str) -> Metric:
        """As data. marks: of the bench's items and settings."""
        name = f"{self.bench.name}/{self.figure.name}"
        words = f"{self.figure.label} ({self.bench.title})"
        return Metric(name=name, words=words, unit=self.figure.unit, wanted=self.wanted, marks=marks)

    def read(self, folder: Path, subject: Subject, num_seeds: int) -> Interval | None:
        """Return the figure of a model whose batches are finished, in the bench's first decoding (greedy texts).

        Args:
            folder: of the evaluation.
            subject: the model.
            num_seeds: of the evaluation.

        Returns:
            The value with its 95 % interval over items; None if no item has it.
        """
        values = measured_values(folder, self.bench, all_batches([self.bench], [subject], num_seeds))
        found = estimate(values[subject.key, self.bench.decodings[0]], self.figure)
        return None if found is None else found.over_items


def choose_figure(benches: Sequence[ItemBench], name: str | None, wanted: str | None) -> ChosenFigure:
    """Return the figure that a recipe's `eval.metric` names.

    Args:
        benches: of the recipe, in its order.
        name: `BENCH/FIGURE`; None takes the headline figure of the first bench at the largest edit budget.
        wanted: `more` or `less`; None takes what the figure says of itself.

    Raises:
        InputError: an unknown name, with the closest one, or a figure of which nobody says whether more or less of it
            is better.
    """
    known = {f"{bench.name}/{figure.name}": (bench, figure) for bench in benches for figure in bench.figures(())}
    if name is None:
        first = [key for key, (bench, _) in known.items() if bench is benches[0]]
        name = _headline([(key, known[key][1]) for key in first])
    if name not in known:
        raise InputError(f"no figure is called '{one_line(name, 80)}'", hint=_closest(name, known))
    bench, figure = known[name]
    if (wanted or figure.wanted) == "neither":
        raise InputError(
            f"'{name}' is better neither higher nor lower by itself", hint="say more or less with eval.wanted"
        )
    return ChosenFigure(bench=bench, figure=figure, wanted=wanted or figure.wanted)


def _headline(figures: Sequence[tuple[str, Figure]]) -> str:
    """The last of the first headline's group: budgets are in ascending order. A bench without one has its first."""
    heads = [(key, figure) for key, figure in figures if figure.headline] or list(figures[:1])
    if not heads:
        raise InputError("the first bench has no figure that is known beforehand", hint="name one with eval.metric")
    return [key for key, figure in heads if figure.group == heads[0][1].group][-1]


def _closest(name: str, known: Sequence[str] | dict[str, Any]) -> str:
    bench, _, figure = name.partition("/")
    # `shapes/drft`: several benches have such a figure, and the first one of the recipe is the main one
    own = [key for key in known if key.startswith((f"{bench}.", f"{bench}/"))]
    of_bench = {key.partition("/")[2]: key for key in reversed(own)}
    close = [of_bench[word] for word in difflib.get_close_matches(figure, list(of_bench), n=1, cutoff=0.6)]
    close += difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    same = [key for key in known if key.partition("/")[0] == bench] or list(known)
    return f"such as {', '.join(same[:_SHOWN])}; eval/table.json of a measured run has all"


def metric_problem(recipe: Recipe) -> str:
    """Return what is wrong with a recipe's `eval.metric`, in words, or "". No model is loaded.

    Raises:
        InputError: files of a bench that are missing or broken.
    """
    benches = list(_benches_of(recipe))
    try:
        choose_figure(benches, recipe.eval.metric, recipe.eval.wanted)
    except InputError as error:
        return str(error)
    return ""


def _benches_of(recipe: Recipe) -> Iterator[ItemBench]:
    """With one item each: their figures are those of all items."""
    own = find_world(recipe.data.world) if recipe.data.world else None
    for name, path in recipe.eval.benches.items():
        place = find_world(name) if name in registered.names(registered.WORLDS) else None
        request = Request(
            name=name,
            path=None if path is None else Path(path),
            tags=_tags(recipe, place),
            world=place or own,
            rounds=sorted(set(recipe.eval.rounds)),
            limit=1,
        )
        if place is not None:
            yield from world_benches(request, place)
        else:
            yield from registered.find(registered.ITEM_BENCHES, name)(request)


def _tags(recipe: Recipe, world: World[Any] | None) -> Sequence[str] | None:
    """The kinds of prompts that are trained in a world; None for all of them."""
    if world is None or recipe.data.world != world.name:
        return None
    return chosen_tags(world, recipe.data.tags, recipe.data.exclude_tags)
