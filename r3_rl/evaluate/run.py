"""A whole run: measure, train, measure again, export, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any

from r3_rl import joining, ranks
from r3_rl.assemble import (
    LoadedPolicy,
    load_policy,
)
from r3_rl.errors import InputError
from r3_rl.evaluate.base import Bench, Measures, bench_of
from r3_rl.evaluate.best import BestKeeper, KeepBest, best_words, save_trained
from r3_rl.evaluate.build import build_trainer
from r3_rl.evaluate.early import Pace, ending_of, how_to_go_on
from r3_rl.evaluate.gallery import BetweenSteps, Gallery
from r3_rl.evaluate.measured import Items, Measured
from r3_rl.evaluate.recording import gallery_of, keep_rollouts, measure_base, measure_phase, recorder_of
from r3_rl.evaluate.results import evaluation_of, print_headline, print_table, write_results
from r3_rl.evaluate.resume import Resumed, find_place
from r3_rl.evaluate.resume import resume as resume_from
from r3_rl.observe.course import BEST
from r3_rl.observe.ending import FILE as ENDING
from r3_rl.observe.ending import Ending
from r3_rl.observe.evaluation import Evaluation
from r3_rl.observe.lock import sole_writer
from r3_rl.observe.progress import RunProgress
from r3_rl.observe.recorder import Recorder, new_run_folder
from r3_rl.observe.report import write_report
from r3_rl.policy.adapters import adapted_layers
from r3_rl.recipe import Recipe, geometry
from r3_rl.training.callbacks import RecordCallback
from r3_rl.training.manifest import Checkpoint
from r3_rl.training.signals import SignalCallback
from r3_rl.training.trainer import R3Trainer

GUARD_STOPPED = 3
"""Exit code of a run that a guard stopped."""
Further = Callable[[Recipe, LoadedPolicy, Path, int], Measures]
"""The recipe, the policy, the run's folder, the step that the run goes on from -> the benches of its section `eval`."""
AGAIN = 1.3
"""How long the second measurement takes, over the first: it has the policy's own wrong drafts read by two critics."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RunResult:
    """What a run left."""

    folder: Path
    before: Measured | None
    after: Measured | None
    ending: Ending
    """How it ended."""
    stopped_by: int | None = None
    """Number of the signal that ended it before its last step; None for a finished run."""
    evaluation: Evaluation | None = None
    """What was measured before and after; None without a bench, and for a run that a signal or a guard stopped."""

    @property
    def exit_code(self) -> int:
        """Of the process: 0, 3 if a guard stopped the run, 128 + N if signal N did."""
        return 128 + self.stopped_by if self.stopped_by else GUARD_STOPPED if self.ending.why == "guard" else 0


def train(
    recipe: Recipe,
    *,
    name: str = "r3",
    resume: str | None = None,
    allow_changes: bool = False,
    bench: Bench[Any] | None = None,
    folder: Path | None = None,
    source: str | None = None,
    headline: bool = True,
    limit_s: float | None = None,
    further: Further | None = None,
) -> RunResult:
    """Runs a recipe. `resume`: an interrupted run or one of its checkpoints, as `find_place` takes them;
    `allow_changes`: with other data, rewards, seed or model than it had. `bench`: what is measured before and after (by
    default the one that the recipe's world names; prompts of a file are judged by their rewards alone).
    `source`: the recipe as the user wrote it, kept next to the resolved one. `headline`: False leaves the last lines,
    the figures to remember, to a caller who has more to print. `limit_s`: seconds for all of it; training ends in time
    to measure again, as far as the first measurement tells. `further`: makes the benches of the section `eval`
    (`r3_rl.benches.in_training.RunBenches`).

    In a process that `torchrun` started it joins the others: all roll out and learn, the first one measures and writes.
    """
    begin = time.monotonic()
    if recipe.eval.benches and further is None:
        raise InputError("the recipe names benches in its section 'eval'", hint="`r3 train` measures them")
    joining.join()
    print(geometry(recipe, ranks.count()))
    runs, place = Path(recipe.training.output_dir), None
    if resume is not None:
        place = ranks.of_first(partial(find_place, resume, runs=runs, name=name))
    run_folder = place.run if place else folder or ranks.of_first(partial(new_run_folder, runs, name))
    signals = SignalCallback(warning_signal=recipe.training.warning_signal)
    with joining.one_fate(), signals, ExitStack() as held:
        ranks.of_first(lambda: held.enter_context(sole_writer(run_folder)))
        try:
            resumed = None
            if place is not None:
                resumed = ranks.of_first(partial(resume_from, place, recipe, allow_changes=allow_changes))
            if resumed is not None and resumed.finished:
                step = resumed.checkpoint.step
                done = Ending(step=step, num_steps=step, why="done")
                return RunResult(folder=run_folder, before=None, after=None, ending=done)
            return _train(
                recipe,
                run_folder,
                signals,
                resumed=resumed,
                bench=bench,
                source=source,
                headline=headline,
                limit_s=limit_s,
                begin=begin,
                further=further if recipe.eval.benches else None,
            )
        except KeyboardInterrupt as stopped:
            name = Signals(stopped.args[0] if stopped.args else Signals.SIGINT).name
            print(f"stopped by {name}; {how_to_go_on(run_folder)}", flush=True)
            raise


def _train(
    recipe: Recipe,
    folder: Path,
    signals: SignalCallback,
    *,
    resumed: Resumed | None,
    bench: Bench[Any] | None,
    source: str | None,
    headline: bool,
    limit_s: float | None,
    begin: float,
    further: Further | None,
) -> RunResult:
    """The run itself, in a folder that nobody else writes. begin: of all of it, by the monotonic clock."""
    loaded = load_policy(recipe.model, world=recipe.data.world)
    trainer = build_trainer(recipe, loaded, folder)
    checkpoint = resumed.checkpoint if resumed else None
    if ranks.rank() > 0:
        return _follow(trainer, recipe, signals, checkpoint, folder)
    recorder = recorder_of(recipe, folder, resumed, loaded, source)
    print(f"run folder {folder}")
    print(trainer.self_check())
    bench = bench or bench_of(recipe)
    items: Items | None = bench.items() if bench else None
    benches = further(recipe, loaded, folder, checkpoint.step if checkpoint else 0) if further else None
    if (bench or benches) and trainer.learner.in_parts:
        # the swap test asks the base after training, when the processes that hold shards of it have left
        loaded.policy.remember_base(on_host=True)
    gallery = gallery_of(recipe, loaded, trainer, bench, items, recorder)
    loading_s = time.monotonic() - begin
    before = measure_base(recipe, bench, items, loaded, gallery, keep=limit_s is None) if bench and items else None
    if benches:
        benches.before()
    keep = _keep_best(recipe, loaded, trainer, folder, benches, checkpoint)
    around_s = loading_s + (1 + AGAIN) * (time.monotonic() - begin - loading_s)
    if limit_s is not None:
        trainer.args.time_budget_s = max(limit_s - around_s, 0.0)
    between = [benches.during] if benches and recipe.eval.during and keep is None else []
    training_s = _lead(trainer, recipe, signals, gallery, checkpoint, folder, between, keep)
    joining.leave()
    pace = Pace(
        steps=trainer.state.global_step - (checkpoint.step if checkpoint else 0),
        training_s=training_s,
        around_s=around_s,
        minutes=limit_s is not None,
    )
    ending = ending_of(trainer, folder, pace, stopped_by=signals.asked, keep=keep)
    if ending.why in ("signal", "guard"):
        _stop(trainer, recorder, ending)
        return RunResult(folder=folder, before=before, after=None, ending=ending, stopped_by=signals.asked)
    save_trained(recipe, loaded, folder / ("adapter" if adapted_layers(loaded.policy.module) else "model"))
    after = evaluation = None
    if bench and before and before.items:
        after = measure_phase(bench, before.items, loaded, gallery, "after", trainer.state.global_step)
        evaluation = evaluation_of(bench, before, after)
    more: dict[str, Any] = {"ended": ending.document()} if ending.early else {}
    if benches:
        more["benches"] = benches.after(trainer.state.global_step)
    course = keep.finish(trainer.state.global_step) if keep else None
    if course and course.best:
        more["best"] = course.summary()
    seeds, wall_s = [recipe.training.seed], time.monotonic() - begin
    if evaluation and before and before.items and after:
        values = {"before": before.values, "after": after.values}
        write_results(recorder, evaluation, items=before.items, seeds=seeds, wall_s=wall_s, values=values, more=more)
        print_table(evaluation)
    elif benches:
        recorder.document("summary.json", {"seeds": seeds, "wall_s": round(wall_s, 1), **more})
    recorder.document(ENDING, ending.document())
    if ending.early:
        print(ending.words)
    print(f"report {write_report(folder)}")
    if evaluation and headline:
        print_headline(evaluation)
    if course:
        print(best_words(course, folder))
    return RunResult(folder=folder, before=before, after=after, ending=ending, evaluation=evaluation)


def _keep_best(
    recipe: Recipe,
    loaded: LoadedPolicy,
    trainer: R3Trainer,
    folder: Path,
    benches: Measures | None,
    checkpoint: Checkpoint | None,
) -> KeepBest | None:
    """Of the first process, if the recipe keeps its best adapter."""
    if benches is None or benches.metric is None:
        return None
    save, trainer.beside = partial(save_trained, recipe, loaded), folder / BEST
    keeper = BestKeeper(benches, benches.metric, save, folder, checkpoint.folder if checkpoint else None)
    return KeepBest(recipe.training.eval_steps, recipe.eval.patience, recipe.eval.min_gain, keeper)


def _stop(trainer: R3Trainer, recorder: Recorder, ending: Ending) -> None:
    """What is left of a run that a signal or a guard stopped: it is not measured; a guard's is reported."""
    recorder.document(ENDING, ending.document())
    said = trainer.guards.stopped
    if ending.why == "signal" or said is None:
        print(ending.words)
        return
    print(f"stopped by guard {said.finding.name} at step {ending.step}; {how_to_go_on(recorder.run_folder)}")
    print(f"report {write_report(recorder.run_folder)}")


def _lead(
    trainer: R3Trainer,
    recipe: Recipe,
    signals: SignalCallback,
    gallery: Gallery,
    checkpoint: Checkpoint | None,
    folder: Path,
    between: Sequence[Callable[[int], None]],
    keep: KeepBest | None,
) -> float:
    """The steps of the first process, which records them, draws the gallery and does what else is done `between` steps;
    the seconds that they took."""
    recorder = gallery.recorder
    trainer.on_collected = trainer.on_collected or keep_rollouts(recorder, recipe.training.eval_steps)
    trainer.updater.on_gates = lambda step, found: recorder.gates(step + 1, found)
    trainer.updater.balancer.on_probe = lambda found: recorder.conflict(found.step + 1, found.row())
    progress = RunProgress(folder.name, total_steps=recipe.training.max_steps)
    with closing(trainer), progress:
        trainer.guards.say = progress.note
        trainer.add_callback(RecordCallback(recorder, progress))
        trainer.add_callback(signals)
        done = [*([gallery.draw] if gallery.prompts else []), *between]
        trainer.add_callback(BetweenSteps(done, recipe.training.eval_steps))
        if keep is not None:
            trainer.add_callback(keep)
        return float(trainer.train(resume_from_checkpoint=checkpoint).metrics["train_runtime"])


def _follow(
    trainer: R3Trainer, recipe: Recipe, signals: SignalCallback, checkpoint: Checkpoint | None, folder: Path
) -> RunResult:
    """What every process but the first one does: its share of every step."""
    trainer.self_check()
    section, keep = recipe.eval, None
    if section.keep_best:
        keep = KeepBest(recipe.training.eval_steps, section.patience, section.min_gain, None)
    with closing(trainer):
        trainer.add_callback(signals)
        if keep is not None:
            trainer.add_callback(keep)
        done = trainer.train(resume_from_checkpoint=checkpoint)
    joining.leave()
    pace = Pace(steps=done.global_step, training_s=done.metrics["train_runtime"], around_s=0.0, minutes=False)
    ending = ending_of(trainer, folder, pace, stopped_by=signals.asked, keep=keep)
    return RunResult(folder=folder, before=None, after=None, ending=ending, stopped_by=signals.asked)
