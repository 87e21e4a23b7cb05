"""Runs side by side as plain text: which settings of their recipes differ, and what was measured of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from r3_rl.errors import InputError
from r3_rl.observe.common_items import (
    OF_THE_BASE,
    ItemValues,
    after_training,
    first_items,
    independent,
    num_common,
    set_of,
)
from r3_rl.observe.ending import Ending
from r3_rl.observe.evaluation import Evaluation, Figure
from r3_rl.observe.measures import greedy, plain_names
from r3_rl.observe.progress import duration
from r3_rl.observe.recipe_changes import RecipeChange
from r3_rl.observe.run_files import read_run
from r3_rl.observe.statistics import Interval, over_seeds
from r3_rl.observe.text_table import figure
from r3_rl.recipe.changes import flat

SEED = "training.seed"
NO_SETTINGS = ("training.output_dir",)
"""Keys that say where a run is stored, not what it is."""
_WIDTH = 28


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """A finished run, as far as it is compared."""

    folder: Path
    evaluation: Evaluation
    summary: Mapping[str, Any]
    recipe: Mapping[str, Any]
    """Values by dotted key."""
    values: ItemValues
    changes: Sequence[RecipeChange]
    ending: Ending | None


def compare(folders: Sequence[str | Path]) -> str:
    """Write runs side by side: settings that differ, figures before and after training, changes.

    If one run's held-out set begins with the other's, both are judged on the items that they share. Other sets of the
    same kinds of prompts are compared as independent samples, and said to be; rows on fixed drafts, half of which are
    the base's own, are left out if these differ. If nothing but the seed differs, the changes of all runs are joined by
    Student's interval, else what the runs reached is subtracted.

    Args:
        folders: of two or more finished runs.

    Raises:
        InputError: only one run, a run that was not measured before and after, or runs that were measured on
            different kinds of prompts.
    """
    runs = read_runs(folders)
    differing = _differing(runs)
    lines = [*_heads(runs), "", *_settings(differing, len(runs)), ""]
    return "\n".join([*lines, *_figures(runs, seeds_only=set(differing) == {SEED})])


def read_runs(folders: Sequence[str | Path]) -> list[MeasuredRun]:
    """Read runs that can be compared; `compare` says which cannot."""
    if len(folders) < 2:
        raise InputError("there is nothing to compare with", hint="give the folders of two or more runs")
    runs = [_read(Path(folder)) for folder in folders]
    first = runs[0]
    for run in runs[1:]:
        if _task(run) != _task(first):
            raise InputError(
                f"{run.folder} was measured on another task than {first.folder}: {_task(run)} and {_task(first)}",
                hint="measure both with the same data.kind, data.tags and data.exclude_tags",
            )
    return runs


def _read(folder: Path) -> MeasuredRun:
    if not folder.is_dir():
        raise InputError(f"no run folder at {folder}", hint="give the folder that `r3 train` printed")
    found = read_run(folder)
    if found.evaluation is None or not isinstance(found.summary.get("sets"), dict):
        raise InputError(
            f"{folder}: not measured before and after training, or not said on which sets",
            hint="a run in a world leaves evaluation.json and summary.json when it is done",
        )
    try:
        recipe = YAML(typ="safe", pure=True).load(found.resolved)
    except YAMLError:
        recipe = None
    if not isinstance(recipe, dict):
        raise InputError(f"{folder / 'recipe.resolved.yaml'}: not a recipe")
    return MeasuredRun(
        folder=folder,
        evaluation=found.evaluation,
        summary=found.summary,
        recipe=dict(flat(recipe)),
        values=ItemValues.read(folder),
        changes=found.changes,
        ending=found.ending,
    )


def _task(run: MeasuredRun) -> str:
    """The kinds of prompts that a run was measured on."""
    kind, tags, left_out = (run.recipe.get(f"data.{key}") for key in ("kind", "tags", "exclude_tags"))
    chosen = ", ".join(sorted(tags)) if tags else "all kinds"
    return f"'{kind}' ({chosen}{' but ' + ', '.join(sorted(left_out)) if left_out else ''})"


def _set(run: MeasuredRun, name: str) -> Any:
    return run.summary["sets"].get(name)


def _differing(runs: Sequence[MeasuredRun]) -> dict[str, list[str]]:
    keys = dict.fromkeys(key for run in runs for key in run.recipe)
    values = {key: [str(run.recipe.get(key, "-")) for run in runs] for key in keys if key not in NO_SETTINGS}
    return {key: texts for key, texts in values.items() if len(set(texts)) > 1}


def _heads(runs: Sequence[MeasuredRun]) -> Iterator[str]:
    for number, run in enumerate(runs, start=1):
        facts = [f"seed {run.recipe.get(SEED, '?')}", f"{run.summary.get('num_prompts', '?')} held-out prompts"]
        if run.ending is not None and run.ending.early:
            facts.append(f"ended at step {run.ending.step} of {run.ending.num_steps}")
        if isinstance(seconds := run.summary.get("wall_s"), int | float):
            facts.append(duration(seconds))
        yield f"run {number}  {run.folder}  ({', '.join(facts)})"
        yield from (f"       changed when it was resumed, {change}" for change in run.changes)


def _settings(differing: Mapping[str, Sequence[str]], num_runs: int) -> Iterator[str]:
    if not differing:
        yield "No setting differs."
        return
    yield from _columns(["setting", *(f"run {number + 1}" for number in range(num_runs))], differing)


def _columns(head: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Iterator[str]:
    table = [list(head), *([name, *texts] for name, texts in rows.items())]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip()


def _figures(runs: Sequence[MeasuredRun], *, seeds_only: bool) -> Iterator[str]:
    yield f"{'per cent (or the unit named), 95 % interval':42}{'before':{_WIDTH}}{'after':{_WIDTH}}change"
    measured = dict.fromkeys(name for run in runs for name in run.evaluation.names())
    shown = Shown(runs)
    reached: list[str] = []
    for plain in plain_names(measured):
        for name in (greedy(plain), plain):  # greedy first: sampled figures also move with the entropy of the texts
            if name not in measured or "/" in name:
                continue
            figures = shown.figures(name)
            if figures:
                yield from _rows(name, figures, seeds_only=seeds_only)
                reached += [] if seeds_only else shown.differences(name, figures)
    yield ""
    if reached:
        yield from ("What the runs reached, after training:", *reached, "")
    yield from shown.remarks()
    yield "Intervals are over the items of one run; runs with other seeds differ by more than that."


class Shown:
    """The figures of runs on what they have in common, and what has to be said about it."""

    def __init__(self, runs: Sequence[MeasuredRun]) -> None:
        self.runs = runs
        self.values = [run.values for run in runs]
        self.left_out: dict[str, str] = {}
        self.shortened: dict[str, int] = {}
        self.unpaired: dict[str, None] = {}

    def figures(self, name: str) -> list[Figure]:
        """One a run; none if the sets differ in more than their size."""
        whole = [run.evaluation.figure(name) for run in self.runs]
        items = set_of(name)
        if len({_set(run, items) for run in self.runs}) == 1:
            return whole
        if items in OF_THE_BASE:
            self.left_out[name] = items
            return []
        count = num_common(name, self.values)
        cut = [first_items(name, values, count) for values in self.values] if count else []
        kept = [figure for figure in cut if figure is not None]
        if len(kept) == len(self.runs):
            self.shortened[items] = count
            return kept
        self.unpaired[items] = None
        return whole

    def differences(self, name: str, figures: Sequence[Figure]) -> list[str]:
        """Lines: what each further run reached minus what the first one did."""
        lines = []
        for number, (change, paired) in enumerate(self.against_first(name, figures), start=2):
            if change is not None:
                how = f"paired, n = {change.count}" if paired else "unpaired"
                lines.append(f"run {number} - run 1  {name:30}{figure(name, change, signed=True):30}{how}")
        return lines

    def against_first(self, name: str, figures: Sequence[Figure]) -> Iterator[tuple[Interval | None, bool]]:
        """Of each further run: what it reached minus what the first one did, and whether that is paired by item."""
        count = num_common(name, self.values)
        for values, this in zip(self.values[1:], figures[1:], strict=True):
            paired = after_training(name, self.values[0], values, count) if count else None
            yield paired or independent(name, figures[0].after, this.after), paired is not None

    def remarks(self) -> Iterator[str]:
        """What was left out, cut or not paired."""
        if self.left_out:
            sets = ", ".join(dict.fromkeys(self.left_out.values()))
            yield f"Left out, since the runs were judged on different sets ({sets}): {', '.join(self.left_out)}."
        for items, count in self.shortened.items():
            yield f"Of '{items}' the first {count} are compared, which all runs were measured on."
        if self.unpaired:
            yield (
                f"Other items in each run ({', '.join(self.unpaired)}): each has its own figures, and differences are "
                "unpaired, so their intervals are wider."
            )


def _rows(name: str, shown: Sequence[Figure], *, seeds_only: bool) -> Iterator[str]:
    for number, row in enumerate(shown, start=1):
        phases = [f"{figure(name, this) if this else '    -':{_WIDTH}}" for this in (row.before, row.after)]
        change = figure(name, row.difference, signed=True) if row.difference else "    -"
        yield f"{name if number == 1 else '':34}  run {number:<2}{''.join(phases)}{change}"
    changes = [row.difference.mean for row in shown if row.difference]
    if seeds_only and len(changes) == len(shown):
        joined = figure(name, over_seeds(changes), signed=True)
        yield f"{'':34}  {'over the seeds':{6 + 2 * _WIDTH}}{joined}"
