"""A study's folder: which arms with which seeds, their recipes checked before anything runs, and where each run is."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from r3_rl.errors import InputError, RecipeError
from r3_rl.observe.recorder import write_document
from r3_rl.recipe import Recipe
from r3_rl.recipe.changes import changes
from r3_rl.recipe_io import dump_resolved, load_recipe
from r3_rl.study.arms import ARMS, Arm, find_arms

PLAN = "study.json"
MEASURED = "summary.json"
"""What a run has when it is done: of what it measured, this is written last."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a study."""

    arm: Arm
    seed: int
    study: Path

    @property
    def recipe(self) -> Path:
        """The file of its recipe, whole."""
        return self.study / "recipes" / f"{self.arm.name}.yaml"

    @property
    def runs(self) -> Path:
        """The folder of the runs with its seed."""
        return self.study / "runs" / f"seed-{self.seed}"

    @property
    def parts(self) -> list[tuple[Job, float]]:
        """The runs whose adapters it begins from, added up, and the weight of each; mostly none."""
        return [(replace(self, arm=ARMS[name]), weight) for name, weight in self.arm.merges]

    @property
    def start(self) -> Path:
        """The folder of their sum."""
        return self.runs / f"{self.arm.name}.adapter"

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.runs / f"{self.arm.name}.log"

    def folders(self) -> list[Path]:
        """Its run folders, newest last: a run that was killed before its first checkpoint begins in another one."""
        found = self.runs.glob(f"{self.arm.name}*") if self.runs.is_dir() else ()
        named = re.compile(rf"{re.escape(self.arm.name)}(?:-(\d+))?")
        numbered = [
            (int(match[1] or 1), path) for path in found if path.is_dir() and (match := named.fullmatch(path.name))
        ]
        return [path for _, path in sorted(numbered)]

    @property
    def done(self) -> Path | None:
        """The folder of its finished run; None until there is one."""
        return next((folder for folder in reversed(self.folders()) if (folder / MEASURED).is_file()), None)

    @property
    def interrupted(self) -> Path | None:
        """The folder of a run that has a checkpoint to go on from; None if it has to begin."""
        for folder in reversed(self.folders()):
            if any((folder / "checkpoints").glob("checkpoint-*")):
                return folder
        return None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study runs."""

    folder: Path
    recipe: str
    """Name or file of the recipe that the arms change."""
    arms: tuple[str, ...]
    """Names, as `find_arms` takes them."""
    num_seeds: int
    overrides: tuple[str, ...]
    """Of every arm."""

    def jobs(self) -> list[Job]:
        """Seed by seed, so that a study that is stopped early has whole seeds."""
        arms = find_arms(self.arms)
        return [Job(arm=arm, seed=seed, study=self.folder) for seed in range(self.num_seeds) for arm in arms]

    @classmethod
    def read(cls, folder: Path) -> Plan | None:
        """The study that a folder holds; None if it holds none.

        Raises:
            InputError: its `study.json` cannot be read.
        """
        file = folder / PLAN
        if not file.is_file():
            return None
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            return cls(
                folder=folder,
                recipe=str(document["recipe"]),
                arms=tuple(map(str, document["arms"])),
                num_seeds=int(document["num_seeds"]),
                overrides=tuple(map(str, document["overrides"])),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} is no study: {error!r}", hint="give another folder") from None


def write_plan(plan: Plan) -> None:
    """Check the recipe of every arm and write them, and what the study is, into its folder.

    Raises:
        RecipeError: an arm's recipe is wrong; the message names the arm.
        InputError: an arm measures nothing, or its recipe is not the one that its runs in the folder had.
    """
    jobs = {job.arm.name: job for job in plan.jobs()}
    recipes = {name: _recipe(plan, job.arm) for name, job in jobs.items()}
    for name, job in jobs.items():
        if job.recipe.is_file():
            _refuse_another(job, recipes[name])
    for name, job in jobs.items():
        job.recipe.parent.mkdir(parents=True, exist_ok=True)
        write_document(job.recipe, dump_resolved(recipes[name]))
    document = {
        "recipe": plan.recipe,
        "overrides": list(plan.overrides),
        "arms": list(plan.arms),
        "num_seeds": plan.num_seeds,
    }
    write_document(plan.folder / PLAN, json.dumps(document, indent=1) + "\n")


def _recipe(plan: Plan, arm: Arm) -> Recipe:
    try:
        name = arm.recipe or plan.recipe
        own = arm.overrides(load_recipe(name, plan.overrides).rollout.branch) if arm.branch else arm.settings
        # what makes the arm stands last: a setting of all arms must not undo it
        recipe = load_recipe(name, [*plan.overrides, *own])
    except RecipeError as error:
        raise RecipeError("\n".join(f"arm '{arm.name}': {line}" for line in str(error).splitlines())) from None
    if recipe.data.world is None:
        raise InputError(
            f"arm '{arm.name}': prompts of '{recipe.data.kind}' are not measured before and after training",
            hint="a study compares what a world measures; take a recipe of one",
        )
    return recipe


def _refuse_another(job: Job, recipe: Recipe) -> None:
    old = load_recipe(job.recipe)
    found = changes(old.model_dump(mode="json"), recipe.model_dump(mode="json"))
    if found:
        lines = "; ".join(map(str, found[:3])) + ("; ..." if found[3:] else "")
        raise InputError(
            f"{job.study} holds a study whose arm '{job.arm.name}' is another: {lines}", hint="give another folder"
        )
