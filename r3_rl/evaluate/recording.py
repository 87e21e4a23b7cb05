"""What a run keeps while it goes on: its recorder, rollouts, the gallery's pictures, what a phase measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from r3_rl.assemble import LoadedPolicy, loop_settings
from r3_rl.evaluate.base import SEED, Bench
from r3_rl.evaluate.fixed_sets import LoopItems
from r3_rl.evaluate.gallery import Gallery, by_judge, by_panel
from r3_rl.evaluate.kept_base import KeptBase
from r3_rl.evaluate.loop_bench import LoopBench
from r3_rl.evaluate.measured import Items, Measured
from r3_rl.evaluate.resume import Resumed, record_changes
from r3_rl.observe.ending import FILE as ENDING
from r3_rl.observe.environment import environment
from r3_rl.observe.progress import duration
from r3_rl.observe.recorder import Recorder
from r3_rl.policy.adapters import adapter_merged
from r3_rl.recipe import Recipe
from r3_rl.recipe_io import dump_resolved
from r3_rl.training.schedules import Collected
from r3_rl.training.trainer import R3Trainer


def recorder_of(
    recipe: Recipe, folder: Path, resumed: Resumed | None, loaded: LoadedPolicy, source: str | None
) -> Recorder:
    """Of the run folder, which says from the start what the run is and where it runs."""
    recorder = Recorder(
        folder,
        keep_trajectories=recipe.observe.keep_trajectories,
        resume_step=resumed.checkpoint.step if resumed else None,
    )
    if resumed:
        (folder / ENDING).unlink(missing_ok=True)
        record_changes(recorder, recipe, resumed)
    else:
        recorder.document("recipe.resolved.yaml", dump_resolved(recipe))
        recorder.document("recipe.yaml", source or dump_resolved(recipe))
    recorder.document("environment.json", environment(dtype=str(loaded.dtype).removeprefix("torch.")))
    return recorder


def gallery_of(
    recipe: Recipe,
    loaded: LoadedPolicy,
    trainer: R3Trainer,
    bench: Bench[Any] | None,
    items: Items | None,
    recorder: Recorder,
) -> Gallery:
    """The first `observe.gallery` prompts that are measured, or of the file where nothing is measured."""
    count, batch = recipe.observe.gallery, recipe.rollout.num_prompts
    if items:
        prompts = list(items.prompts[:count])
    else:
        prompts = [p for step in range(-(-count // batch)) for p in trainer.prompts.batch(step)][:count]
    return Gallery(
        policy=loaded.policy,
        prompts=prompts,
        settings=loop_settings(recipe.rollout),
        rounds=bench.rounds if bench else recipe.rollout.rounds,
        seed=items.seed if items else SEED,
        verdicts=by_judge(bench.judge) if bench else by_panel(trainer.panel),
        recorder=recorder,
    )


def measure_phase(
    bench: Bench[Any],
    items: Items | None,
    loaded: LoadedPolicy,
    gallery: Gallery,
    phase: str,
    step: int,
    *,
    base: bool = False,
) -> Measured:
    """One phase; `base` measures with the adapter off, so that a resumed run measures the same base."""
    begin = time.monotonic()
    if base:
        with loaded.policy.reference():
            measured = bench.run(loaded.policy, items)
    else:
        with adapter_merged(loaded.policy.module):
            measured = bench.run(loaded.policy, items)
    shown = len(gallery.prompts)  # the bench's first prompts: kept whatever came out, and not twice
    gallery.record(step, measured.trajectories[:shown], phase)
    gallery.recorder.trajectories(step, measured.trajectories[shown:], phase=phase)
    print(f"measured {phase} training in {duration(time.monotonic() - begin)}")
    return measured


def measure_base(
    recipe: Recipe, bench: Bench[Any], items: Items, loaded: LoadedPolicy, gallery: Gallery, *, keep: bool
) -> Measured:
    """The first phase: measured, or read from where another run has left it (`training.base_measured`).

    Args:
        recipe: of the run.
        bench: of its world.
        items: that the bench measures on.
        loaded: the policy, whose adapter is off.
        gallery: draws its prompts.
        keep: False measures in any case: a run with a clock has to know what that takes.
    """
    kept = None
    below = recipe.training.base_measured
    if keep and below and isinstance(bench, LoopBench) and isinstance(items, LoopItems):
        dtype = str(loaded.dtype).removeprefix("torch.")
        kept = KeptBase.of(Path(below), recipe, bench, items, fingerprint=loaded.fingerprint, dtype=dtype)
        if (measured := kept.read()) is not None:
            gallery.draw_base()
            print(f"measured before training by another run, kept in {kept.folder}")
            return measured
    measured = measure_phase(bench, items, loaded, gallery, "before", 0, base=True)
    if kept is not None and isinstance(measured.items, LoopItems):
        kept.write(measured)
    return measured


def keep_rollouts(recorder: Recorder, every: int) -> Callable[[int, Collected], None]:
    """Best, worst and random rollouts of every so many steps, and of the step after, which is of the other kind."""

    def keep(step: int, collected: Collected) -> None:
        if (step + 1) % every < 2 and collected.phase != "answer":  # a question's image is nobody's trajectory
            recorder.trajectories(step + 1, collected.trajectories())

    return keep
