"""A study: arms times seeds, each a run of its own, and one report of what they changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from r3_rl.errors import InputError, RunError
from r3_rl.importing import closest
from r3_rl.observe.lock import sole_writer
from r3_rl.study.arms import R3, find_arms
from r3_rl.study.document import write_documents
from r3_rl.study.figures import ArmRuns, finished
from r3_rl.study.jobs import run_jobs
from r3_rl.study.page import write_page
from r3_rl.study.plan import Plan, write_plan
from r3_rl.study.tables import report_of


def study(
    folder: Path,
    *,
    recipe: str | None,
    arms: Sequence[str],
    num_seeds: int | None,
    overrides: Sequence[str],
    at_once: int,
    against: str | None,
) -> Path:
    """Run what is not done yet and write the report of everything that is.

    Args:
        folder: of the study. One that was begun goes on; arms and seeds are added to those that it has.
        recipe: that the arms change; None takes the one that the study began with.
        arms: names, as `find_arms` takes them.
        num_seeds: seeds 0, 1, ... of every arm; None takes as many as the study has, or 3.
        overrides: settings of every arm, `key=value`.
        at_once: runs side by side.
        against: the arm that the others are compared with; None takes R3, or the first.

    Returns:
        The path of the page.

    Raises:
        RecipeError, InputError: before anything runs: a recipe or an arm is wrong, or the folder holds another study.
        RunError: runs failed; the report of the others is written.
    """
    plan = _plan(folder, recipe, arms, num_seeds, overrides)
    names = [arm.name for arm in find_arms(plan.arms)]
    if against is not None and against not in names:
        raise InputError(f"--against {against}: no such arm in this study", hint=closest(against, names))
    folder.mkdir(parents=True, exist_ok=True)
    with sole_writer(folder):
        write_plan(plan)
        jobs = plan.jobs()
        failed = run_jobs(jobs, at_once=at_once)
        page = write_report(plan, against=against)
    if failed:
        what = ", ".join(f"{job.arm.name} with seed {job.seed}" for job in failed)
        raise RunError(f"{len(failed)} of {len(jobs)} runs failed: {what}", hint="the same command tries them again")
    return page


def write_report(plan: Plan, *, against: str | None = None) -> Path:
    """Write tables, numbers and page of the runs that are done; return the page's path.

    Raises:
        RunError: none is done.
    """
    jobs = plan.jobs()
    arms = finished(jobs)
    if not arms:
        raise RunError(f"no run of {plan.folder} is done", hint=f"see the logs in {jobs[0].runs}")
    reference = next((arm for arm in arms if arm.arm.name == (against or R3)), arms[0])
    report = report_of(plan.folder.resolve().name, _lead(plan, arms), arms, reference)
    write_documents(plan.folder, report)
    return write_page(plan.folder, report)


def _plan(
    folder: Path, recipe: str | None, arms: Sequence[str], num_seeds: int | None, overrides: Sequence[str]
) -> Plan:
    old = Plan.read(folder)
    if old is None:
        if recipe is None:
            raise InputError(f"{folder}: no study in this folder", hint="give --recipe to begin one")
        return Plan(
            folder=folder,
            recipe=recipe,
            arms=tuple(arms) or ("main",),
            num_seeds=3 if num_seeds is None else num_seeds,
            overrides=tuple(overrides),
        )
    if recipe not in (None, old.recipe) or (overrides and tuple(overrides) != old.overrides):
        raise InputError(
            f"{folder} holds a study of {' '.join((old.recipe, *old.overrides))}",
            hint="give the same recipe and settings, or none, or another folder",
        )
    return replace(
        old,
        arms=tuple(dict.fromkeys((*old.arms, *arms))),
        num_seeds=max(old.num_seeds, num_seeds or 0),
    )


def _lead(plan: Plan, arms: Sequence[ArmRuns]) -> str:
    """What was run, and what is missing."""
    run = next(iter(arms[0].runs.values()))
    wanted, there = len(plan.jobs()), sum(len(arm.runs) for arm in arms)
    steps = run.history.step
    settings = f" with {', '.join(plan.overrides)}" if plan.overrides else ""
    missing = f" {wanted - there} of {wanted} runs are missing." if there < wanted else ""
    return (
        f"{plan.recipe}{settings}: {len(arms)} arms, {plan.num_seeds} seeds, {steps} steps, "
        f"{run.summary.get('num_prompts', '?')} held-out prompts.{missing}"
    )
