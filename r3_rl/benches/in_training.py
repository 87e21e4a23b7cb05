"""The benches of a recipe's section `eval`: measured before a run's first step, after its last one, and between."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn, uint8

from r3_rl.assemble import LoadedPolicy, loop_settings
from r3_rl.benches.base import ItemBench
from r3_rl.benches.metric import choose_figure
from r3_rl.benches.results import BenchResult
from r3_rl.benches.run import EvalSettings, find_benches, write_results
from r3_rl.benches.subjects import BASE, MODEL, TRAINED, Subject, Subjects
from r3_rl.benches.work import all_batches, forget, measure_alone
from r3_rl.evaluate.fixed_sets import digest
from r3_rl.evaluate.loading import Loaded
from r3_rl.observe.bench_table import FOLDER
from r3_rl.observe.course import Metric
from r3_rl.observe.recorder import write_document
from r3_rl.observe.statistics import Interval
from r3_rl.recipe import Recipe

STEP = "step-"
"""What the policy between two steps is called, before the number of the step."""
PLAN = "plan.json"
"""What is kept of each model follows from this: with another plan it is measured again."""


def eval_settings(recipe: Recipe) -> EvalSettings:
    """The section as settings of `r3 eval`."""
    section = recipe.eval
    return EvalSettings(
        benches=[name if path is None else f"{name}={path}" for name, path in section.benches.items()],
        rounds=sorted(set(section.rounds)),
        num_seeds=section.num_seeds,
        limit=section.limit,
        scorers=Path(section.scorers) if section.scorers else None,
    )


class RunBenches:
    """The benches of one run, in `eval/` of its folder; a `evaluate.base.Measures`.

    What was measured of the same weights is kept, so that a resumed run measures nothing twice.

    Args:
        recipe: with benches in its section `eval`.
        loaded: the policy that is trained, its adapter attached if it has one.
        folder: of the run.
        first_step: of the checkpoint that the run goes on from; 0 for a new run.

    Raises:
        InputError: broken files, a bench of a world whose words the model does not speak, or a metric that none has.
    """

    def __init__(self, recipe: Recipe, loaded: LoadedPolicy, folder: Path, first_step: int = 0) -> None:
        self._settings, self._folder = eval_settings(recipe), folder / FOLDER
        self._loop = loop_settings(recipe.rollout)
        self._loaded, self._sections = loaded, recipe.model_dump(mode="json")
        every = self._subject(MODEL, loaded.fingerprint, source=str(loaded.folder))
        self._benches: list[ItemBench] = find_benches(self._settings, Subjects(models=[every], comparisons=[]))
        section = recipe.eval
        self._chosen = choose_figure(self._benches, section.metric, section.wanted) if section.keep_best else None
        self._num_steps = recipe.training.max_steps
        self._folder.mkdir(exist_ok=True)
        earlier = sorted(int(key.removeprefix(STEP)) for key in self._kept() if key.startswith(STEP))
        self._steps = {step: self._kept()[f"{STEP}{step}"] for step in earlier if step <= first_step}
        """What was measured between two steps, by step: its plan."""

    @property
    def metric(self) -> Metric | None:
        """What the best step is told by; None if no adapter is kept."""
        if self._chosen is None:
            return None
        bench = self._chosen.bench
        settings = [json.dumps(dict(bench.facts), sort_keys=True), str(self._settings.num_seeds), *bench.items]
        return self._chosen.metric(digest([*settings, repr(self._loop), repr(self._settings.rounds)]))

    def read(self, step: int) -> Interval | None:
        """Return the metric of the base (step 0), or of the policy after a step that was measured."""
        assert self._chosen is not None, "asked of a run that has a metric"
        subject = self._base() if step == 0 else self._at(step, "") if step in self._steps else self._trained(step, "")
        return self._chosen.read(self._folder, subject, self._settings.num_seeds)

    def before(self) -> None:
        """Measure the base, whatever the adapter holds already."""
        self._measure(self._base())

    def during(self, step: int) -> None:
        """Measure the policy as it is after so many steps; `after` has nothing left to do if they are all."""
        if step >= self._num_steps:
            self._measure(self._trained(step, self._marks()))
        else:
            self._steps[step] = self._measure(self._at(step, self._marks()))

    def after(self, step: int) -> dict[str, Any]:
        """Measure the policy after its last step, write tables and page, and return the figures for `summary.json`."""
        trained = self._trained(step, self._marks())
        self._measure(trained)
        between = [self._at(number, plan["weights"]) for number, plan in sorted(self._steps.items()) if number < step]
        models = [self._base(), *between, trained]
        todo = all_batches(self._benches, models, self._settings.num_seeds)
        subjects = Subjects(models=models, comparisons=[(BASE, TRAINED)])
        return figures(write_results(self._folder, self._benches, subjects, self._settings, todo))

    def _base(self) -> Subject:
        return self._subject(BASE, self._loaded.fingerprint, source="before training", switched_off=True)

    def _at(self, step: int, marks: str) -> Subject:
        return self._subject(f"{STEP}{step}", marks, source=f"after {step} steps")

    def _trained(self, step: int, marks: str) -> Subject:
        return self._subject(TRAINED, marks, source=f"after training, {step} steps")

    def _subject(self, key: str, marks: str, *, source: str, switched_off: bool = False) -> Subject:
        loaded = Loaded(policy=self._loaded.policy, loop=self._loop, adapted=True, marks=marks, sections=self._sections)
        return Subject(key=key, loaded=loaded, switched_off=switched_off, source=source)

    def _marks(self) -> str:
        return f"{self._loaded.fingerprint}+{trained_marks(self._loaded.policy.module)}"

    def _measure(self, subject: Subject) -> dict[str, Any]:
        """Measure what is not kept of the same weights, items and settings; return what it follows from."""
        plan = {
            "weights": subject.marks,
            "loop": digest([repr(self._loop), subject.dtype]),
            "rounds": list(self._settings.rounds),
            "benches": {bench.name: {"items": digest(bench.items), **bench.facts} for bench in self._benches},
        }
        kept = self._kept()
        if kept.get(subject.key) != plan:
            forget(self._folder, subject.key)
            write_document(self._folder / PLAN, {**kept, subject.key: plan})
        todo = all_batches(self._benches, [subject], self._settings.num_seeds)
        measure_alone(todo, self._folder, rounds=max(self._settings.rounds))
        return plan

    def _kept(self) -> dict[str, Any]:
        """The plan of each model; nothing of a file that is missing or cut off."""
        with suppress(OSError, ValueError):
            found = json.loads((self._folder / PLAN).read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else {}
        return {}


def trained_marks(module: nn.Module) -> str:
    """Return a digest of the parameters that are trained: equal ones give equal figures."""
    found = hashlib.sha256()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            found.update(f"{name} {parameter.dtype} {list(parameter.shape)}\n".encode())
            found.update(parameter.detach().cpu().contiguous().flatten().view(uint8).numpy())
    return found.hexdigest()


def figures(results: list[BenchResult]) -> dict[str, Any]:
    """Return each figure in its first decoding, before and after training, by bench and name."""
    return {
        result.bench.name: {
            row.figure.name: _phases(next(iter(row.cells.values())).models, next(iter(row.cells.values())).changes)
            for row in result.rows
        }
        for result in results
    }


def _phases(models: Mapping[str, Any], changes: Mapping[tuple[str, str], Any]) -> dict[str, Any]:
    found = {phase: models[key].over_items for phase, key in (("before", BASE), ("after", TRAINED)) if key in models}
    phases: dict[str, Any] = {phase: interval.mean for phase, interval in found.items()}
    if change := changes.get((BASE, TRAINED)):
        phases["difference"] = change.over_items.as_dict()
    return phases
