"""What a run folder holds, read for whoever shows it; what is absent or broken is said and stops nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from r3_rl.observe.bench_table import FOLDER, BenchRow, rows_of
from r3_rl.observe.course import COURSE, Course
from r3_rl.observe.ending import Ending, read_ending
from r3_rl.observe.evaluation import Evaluation
from r3_rl.observe.guards import DEFAULTS, ratio_tolerance_of
from r3_rl.observe.recipe_changes import RecipeChange, read_changes
from r3_rl.observe.recorder import Lines, read_lines
from r3_rl.recipe.guarding import Action

WRONG_SHAPE = (KeyError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """Everything a run folder holds that the report shows; what is absent or broken is said in `faults`."""

    name: str
    metrics: Lines
    trajectories: Lines
    gates: Lines
    """Of an adapter that is routed by task; empty without."""
    images: Path
    evaluation: Evaluation | None
    benches: Sequence[BenchRow]
    """Headline figures of the recipe's section `eval`; empty without one."""
    course: Course | None
    """Of the metric that the best adapter is kept by; None if the recipe keeps none."""
    summary: Mapping[str, Any]
    environment: Mapping[str, Any]
    recipe: str
    resolved: str
    changes: Sequence[RecipeChange]
    """Of the recipe, when the run was resumed."""
    ending: Ending | None
    """None while the run goes on, and after a kill."""
    faults: Sequence[str]

    @property
    def guards(self) -> Mapping[str, Action]:
        """What each guard does in this run."""
        given = parsed_recipe(self.resolved).get("guards")
        return {**DEFAULTS, **(given if isinstance(given, Mapping) else {})}

    @property
    def ratio_tolerance(self) -> float:
        """What rounding explains; a run that does not say its number format is held to float32."""
        return ratio_tolerance_of(str(self.environment.get("dtype", "float32")))


def read_run(folder: Path) -> RunFiles:
    """Read a run folder; nothing that is missing or broken stops the page."""
    faults: list[str] = []
    summary = _document(folder / "summary.json", faults)
    environment = _document(folder / "environment.json", faults)
    evaluation = None
    document = _document(folder / "evaluation.json", faults)
    if document:
        try:
            evaluation = Evaluation.from_document(document)
        except WRONG_SHAPE as error:
            faults.append(f"evaluation.json does not have the expected shape: {error!r}")
    benches: list[BenchRow] = []
    try:
        benches = rows_of(_document(folder / FOLDER / "table.json", faults))
    except WRONG_SHAPE as error:
        faults.append(f"{FOLDER}/table.json does not have the expected shape: {error!r}")
    course = None
    try:
        course = Course.from_document(found) if (found := _document(folder / COURSE, faults)) else None
    except WRONG_SHAPE as error:
        faults.append(f"{COURSE} does not have the expected shape: {error!r}")
    metrics, trajectories = read_lines(folder / "metrics.jsonl"), read_lines(folder / "trajectories.jsonl")
    for name, lines in (("metrics.jsonl", metrics), ("trajectories.jsonl", trajectories)):
        if not (folder / name).is_file():
            faults.append(f"{name} is missing.")
        if lines.num_broken:
            faults.append(f"{name}: {lines.num_broken} lines could not be read and are left out.")
    return RunFiles(
        name=folder.resolve().name,
        metrics=metrics,
        trajectories=trajectories,
        gates=read_lines(folder / "gates.jsonl"),
        images=folder / "images",
        evaluation=evaluation,
        benches=benches,
        course=course,
        summary=summary,
        environment=environment,
        recipe=_text(folder / "recipe.yaml", faults),
        resolved=_text(folder / "recipe.resolved.yaml", faults),
        changes=read_changes(folder),
        ending=read_ending(folder),
        faults=faults,
    )


def _document(path: Path, faults: list[str]) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        faults.append(f"{path.name} is not JSON: {error}")
        return {}
    if not isinstance(document, Mapping):
        faults.append(f"{path.name} is not a JSON object.")
        return {}
    return document


def _text(path: Path, faults: list[str]) -> str:
    if not path.is_file():
        faults.append(f"{path.name} is missing.")
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


def parsed_recipe(recipe: str) -> Mapping[str, Any]:
    """A recipe's text as a mapping; empty if it is none."""
    try:
        parsed = YAML(typ="safe").load(recipe)
    except YAMLError:
        return {}
    return parsed if isinstance(parsed, Mapping) else {}
