"""How a run goes on: which run and which checkpoint are meant, and what of its recipe has changed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from ruamel.yaml import YAML, YAMLError

from r3_rl.errors import CheckpointError, InputError
from r3_rl.observe.ending import Ending, read_ending
from r3_rl.observe.recipe_changes import CHANGES
from r3_rl.observe.recorder import Recorder, read_lines
from r3_rl.recipe import Recipe
from r3_rl.recipe.changes import Change, changes, refuse_changes
from r3_rl.recipe_io import dump_resolved
from r3_rl.training.manifest import Checkpoint, checked, newest_whole

LATEST = "latest"
_FIRST = "recipe.resolved.yaml"
_CHECKPOINT = re.compile(r"checkpoint-\d+")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run goes on."""

    run: Path
    checkpoint: Path | None = None
    """The one that was named; None takes the newest that is whole."""


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """What a run goes on from."""

    checkpoint: Checkpoint
    changes: Sequence[Change]
    """Of the recipe, since the run began or was last changed."""
    finished: bool = False
    """Whether the run is done: nothing is left to train or to measure."""


def find_place(where: str, *, runs: Path, name: str | None = None) -> Place:
    """The run and the checkpoint that somebody names.

    Args:
        where: `latest`, a run's folder or its name in `runs`, a checkpoint's folder, or `checkpoint-8` in the latest
            run or below any of these.
        runs: the folder of runs.
        name: of the recipe: the latest run is one of its runs; None takes any.

    Raises:
        InputError: there is no such run or checkpoint; the message says what there is.
    """
    if where == LATEST:
        return Place(run=_latest(runs, name))
    path = Path(where).expanduser()
    for folder in (path, runs / path):
        if folder.is_dir() and folder.parent.name == "checkpoints":
            return Place(run=folder.parent.parent, checkpoint=folder)
        if folder.is_dir():
            return Place(run=folder)
        if _CHECKPOINT.fullmatch(path.name) and len(path.parts) > 1 and folder.parent.is_dir():
            run = folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent
            return Place(run=run, checkpoint=_named(run, path.name))
    if _CHECKPOINT.fullmatch(where):
        run = _latest(runs, name)
        return Place(run=run, checkpoint=_named(run, where))
    there = ", ".join(sorted(run.name for run in _runs(runs))) or "none"
    raise InputError(f"no run folder at {where}, and none of that name in {runs}", hint=f"the runs there: {there}")


def resume(place: Place, recipe: Recipe, *, allow_changes: bool = False) -> Resumed:
    """The checkpoint to go on from, compared with its manifest, and what the recipe changes; says both.

    Raises:
        RecipeError: the recipe changes what it may not.
        CheckpointError: the checkpoint that was named is damaged, or none is whole.
        InputError: the run has no checkpoint, nothing says what it was made with, or its recipe has fewer steps than
            the checkpoint.
    """
    old = _parsed(recorded(place.run))
    found = changes(old.model_dump(mode="json"), recipe.model_dump(mode="json"))
    refuse_changes(found, deepspeed=recipe.training.deepspeed is not None, allowed=allow_changes)
    checkpoint = _checkpoint(place)
    if checkpoint.step > recipe.training.max_steps:
        raise InputError(
            f"{place.run} is at step {checkpoint.step}, so of training.max_steps {recipe.training.max_steps} nothing "
            "is left to do",
            hint="give more steps, or name an earlier checkpoint",
        )
    ending = read_ending(place.run)
    if checkpoint.step == recipe.training.max_steps and ending == Ending(
        step=checkpoint.step, num_steps=checkpoint.step, why="done"
    ):
        print(
            f"nothing is left to do: {place.run} has done its {checkpoint.step} steps and is measured; "
            "a larger training.max_steps goes on"
        )
        return Resumed(checkpoint=checkpoint, changes=(), finished=True)
    if not found and ending is not None and ending.why == "metric" and ending.step == checkpoint.step:
        print(f"nothing is left to do: {place.run} is measured and has {ending.words}")
        return Resumed(checkpoint=checkpoint, changes=(), finished=True)
    print(f"resuming from {checkpoint.folder}: weights, optimiser, schedule, random state, node pool, step")
    if found:
        print("\n".join([f"changed from step {checkpoint.step} on:", *(f"  {change}" for change in found)]))
    return Resumed(checkpoint=checkpoint, changes=found)


def recorded(run: Path) -> Path:
    """The file of the recipe that a run has now: the one that it began with, or the last change's.

    Raises InputError when the run has none.
    """
    rows = read_lines(run / CHANGES).rows
    file = run / (str(rows[-1].get("recipe")) if rows else _FIRST)
    if not file.is_file():
        raise InputError(f"{file} is missing: nothing says what the run was made with", hint="start a new run")
    return file


def record_changes(recorder: Recorder, recipe: Recipe, resumed: Resumed) -> None:
    """Append the changes to the run's, with the step and the whole new recipe; what was recorded before stays."""
    if not resumed.changes:
        return
    path = recorder.run_folder / CHANGES
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    name = f"recipe.change-{len(text.splitlines()) + 1}.yaml"
    recorder.document(name, dump_resolved(recipe))
    row = {
        "step": resumed.checkpoint.step,
        "recipe": name,
        "changes": {change.key: [change.old, change.new] for change in resumed.changes},
    }
    recorder.document(CHANGES, text + json.dumps(row) + "\n")


def _checkpoint(place: Place) -> Checkpoint:
    checkpoints = place.run / "checkpoints"
    if place.checkpoint is not None:
        try:
            found = checked(place.checkpoint)
        except CheckpointError as error:
            number = place.checkpoint.name.rpartition("-")[2]
            before, _ = newest_whole(checkpoints, below=int(number) if number.isdecimal() else None)
            hint = f"--resume {before.folder} is whole" if before else "no checkpoint before it is whole"
            raise CheckpointError(str(error), hint=hint) from None
    else:
        newest, problems = newest_whole(checkpoints)
        if newest is None and problems:
            raise CheckpointError(str(problems[0]), hint="no checkpoint before it is whole; start the run again")
        if newest is None:
            raise InputError(f"{place.run} holds no checkpoint", hint="start the run again without --resume")
        for problem in problems:
            print(f"{problem}; the checkpoint before it is used")
        found = newest
    return found


def _parsed(file: Path) -> Recipe:
    try:
        return Recipe.model_validate(YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, YAMLError, ValidationError) as error:
        first = " ".join(str(error).split())
        raise InputError(f"{file} cannot be read as a recipe: {first}", hint="was it changed by hand?") from error


def _named(run: Path, name: str) -> Path:
    folder = run / "checkpoints" / name
    if not folder.is_dir():
        there = ", ".join(sorted(path.name for path in (run / "checkpoints").glob("checkpoint-*"))) or "none"
        raise InputError(f"{run} has no {name}", hint=f"its checkpoints: {there}")
    return folder


def _latest(runs: Path, name: str | None) -> Path:
    """The run that saved last."""
    of_recipe = re.compile(rf"{re.escape(name)}(-\d+)?" if name else ".*")
    found = [run for run in _runs(runs) if of_recipe.fullmatch(run.name) and any((run / "checkpoints").iterdir())]
    if not found:
        kind = f"run of {name}" if name else "run"
        raise InputError(f"no {kind} with a checkpoint in {runs}", hint="give the run's folder")
    return max(found, key=lambda run: (run / "checkpoints").stat().st_mtime_ns)


def _runs(runs: Path) -> list[Path]:
    return [folder.parent for folder in runs.glob("*/checkpoints") if folder.is_dir()]
