"""Runs side by side as plain text: which settings of their recipes differ, and what was measured of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from r3_rl.errors import InputError
from r3_rl.observe.progress import duration
from r3_rl.observe.report import read_run
from r3_rl.observe.statistics import Interval, over_seeds
from r3_rl.observe.tables import Evaluation

SEED = "training.seed"
NO_SETTINGS = ("training.output_dir",)
"""Keys that say where a run lies and not what it is."""
FIXED_SETS = {
    "wrong": ("wrong_drafts_edited", "wrong_drafts_repaired"),
    "right": ("right_drafts_kept",),
    "questions": ("questions",),
}
"""Measurements by the set that they are made on; all others are made on the held-out prompts."""
_WIDTH = 22


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What is compared of a run."""

    folder: Path
    evaluation: Evaluation
    summary: Mapping[str, Any]
    recipe: Mapping[str, Any]
    """Values by dotted key."""


def compare(folders: Sequence[str | Path]) -> str:
    """Write runs side by side: settings that differ, figures before and after training, changes.

    Rows whose fixed set differs (half of the fixed drafts are the base's own) are left out, and said to be. Where
    nothing but the seed differs, the changes of all runs are joined by Student's interval.

    Args:
        folders: of two or more finished runs.

    Raises:
        InputError: one run alone, a run that was not measured before and after, or runs that were measured on
            different held-out prompts.
    """
    if len(folders) < 2:
        raise InputError("there is nothing to compare with", hint="give the folders of two or more runs")
    runs = [_read(Path(folder)) for folder in folders]
    first = runs[0]
    for run in runs[1:]:
        if _set(run, "prompts") != _set(first, "prompts"):
            raise InputError(
                f"{run.folder} was measured on other prompts than {first.folder}: their figures cannot be compared",
                hint="measure both with the same world, data.tags and training.eval_prompts",
            )
    differing = _differing(runs)
    lines = [*_heads(runs), "", *_settings(differing, len(runs)), ""]
    return "\n".join([*lines, *_figures(runs, seeds_only=set(differing) == {SEED})])


def percent(interval: Interval, *, signed: bool = False) -> str:
    """A share, or a difference of shares, in per cent.

    >>> percent(Interval(mean=0.5, low=0.25, high=0.75, count=4))
    ' 50.0 [ 25.0,  75.0]'
    """
    mean, low, high = (100 * value for value in (interval.mean, interval.low, interval.high))
    return f"{mean:+5.1f} [{low:+5.1f}, {high:+5.1f}]" if signed else f"{mean:5.1f} [{low:5.1f}, {high:5.1f}]"


def _read(folder: Path) -> _Run:
    if not folder.is_dir():
        raise InputError(f"no run folder at {folder}", hint="give the folder that `r3 train` printed")
    found = read_run(folder)
    if found.evaluation is None or not isinstance(found.summary.get("sets"), dict):
        raise InputError(
            f"{folder}: not measured before and after training, or not said on which sets",
            hint="a run of the embedded world leaves evaluation.json and summary.json when it is done",
        )
    try:
        recipe = YAML(typ="safe", pure=True).load(found.resolved)
    except YAMLError:
        recipe = None
    if not isinstance(recipe, dict):
        raise InputError(f"{folder / 'recipe.resolved.yaml'}: not a recipe")
    return _Run(folder=folder, evaluation=found.evaluation, summary=found.summary, recipe=dict(_flat(recipe)))


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted key; a list of plain values is one value.

    >>> dict(_flat({"a": {"b": 1}, "c": [{"d": 2}], "e": [3, 4]}))
    {'a.b': 1, 'c.0.d': 2, 'e': [3, 4]}
    """
    if isinstance(value, dict):
        inside: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        inside = list(enumerate(value))
    else:
        yield path, value
        return
    for key, item in inside:
        yield from _flat(item, f"{path}.{key}" if path else str(key))


def _set(run: _Run, name: str) -> Any:
    return run.summary["sets"].get(name)


def _differing(runs: Sequence[_Run]) -> dict[str, list[str]]:
    keys = dict.fromkeys(key for run in runs for key in run.recipe)
    values = {key: [str(run.recipe.get(key, "-")) for run in runs] for key in keys if key not in NO_SETTINGS}
    return {key: texts for key, texts in values.items() if len(set(texts)) > 1}


def _heads(runs: Sequence[_Run]) -> Iterator[str]:
    for number, run in enumerate(runs, start=1):
        facts = [f"seed {run.recipe.get(SEED, '?')}", f"{run.summary.get('num_prompts', '?')} held-out prompts"]
        if isinstance(seconds := run.summary.get("wall_s"), int | float):
            facts.append(duration(seconds))
        yield f"run {number}  {run.folder}  ({', '.join(facts)})"


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


def _figures(runs: Sequence[_Run], *, seeds_only: bool) -> Iterator[str]:
    left_out = {
        name: words
        for words, names in FIXED_SETS.items()
        for name in names
        if len({_set(run, words) for run in runs}) > 1
    }
    yield f"{'per cent, 95 % interval':32}{'before':{_WIDTH}}{'after':{_WIDTH}}change"
    for name in dict.fromkeys(name for run in runs for name in run.evaluation.names()):
        if "/" in name or name in left_out:
            continue
        rows = [run.evaluation.row(name, name) for run in runs]
        for number, row in enumerate(rows, start=1):
            phases = [f"{percent(this) if this else '    -':{_WIDTH}}" for this in (row.before, row.after)]
            change = percent(row.difference, signed=True) if row.difference else "    -"
            yield f"{name if number == 1 else '':24}  run {number:<2}{''.join(phases)}{change}"
        changes = [row.difference.mean for row in rows if row.difference]
        if seeds_only and len(changes) == len(runs):
            yield f"{'':24}  {'over the seeds':{6 + 2 * _WIDTH}}{percent(over_seeds(changes), signed=True)}"
    yield ""
    if left_out:
        sets = ", ".join(dict.fromkeys(left_out.values()))
        yield f"Left out, since the runs were judged on different sets ({sets}): {', '.join(left_out)}."
    yield "Intervals are over the items of one run; runs with other seeds differ by more than that."
