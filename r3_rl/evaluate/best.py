"""Keeps the adapter of the best step by a recipe's `eval.metric`, and ends a run that gets no better."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from r3_rl import ranks
from r3_rl.assemble import LoadedPolicy
from r3_rl.evaluate.base import Measures
from r3_rl.observe.course import BEST, BEST_FILE, COURSE, Course, Metric
from r3_rl.observe.recorder import write_document
from r3_rl.policy.adapter_files import RECIPE_FILE
from r3_rl.policy.adapters import adapted_layers, save_adapter
from r3_rl.recipe import Recipe
from r3_rl.recipe_io import dump_resolved
from r3_rl.training.room import refuse_without_room, weights_bytes
from r3_rl.training.saving import writing

STATE = "best"
"""Where a checkpoint's state has the course."""


class BestKeeper:
    """The folder `best/` of a run and the course of its metric; in the first process.

    Args:
        measures: of the run, with a metric.
        metric: theirs.
        save: writes what is trained into a folder.
        run: the run's folder.
        checkpoint: that the run goes on from; None for a new one.
    """

    def __init__(
        self, measures: Measures, metric: Metric, save: Callable[[Path], None], run: Path, checkpoint: Path | None
    ) -> None:
        self._measures, self._metric, self._save = measures, metric, save
        self._run, self._checkpoint = run, checkpoint
        self.folder = run / BEST
        self.say: Callable[[str], None] = print

    def begin(self, stored: Mapping[str, Any] | None) -> Course:
        """Return the course so far, with the files that belong to it in `best/`.

        Args:
            stored: of the checkpoint's state; None without one.
        """
        fresh = Course(metric=self._metric, base=self._measures.read(0))
        course = fresh if stored is None else replace(Course.from_document(stored), base=fresh.base)
        if replace(course.metric, words=self._metric.words) != self._metric:
            self.say(f"the best step is told by {self._metric.name} as it is measured now: earlier steps do not count")
            course = fresh
        kept = self._checkpoint / BEST if self._checkpoint is not None and course.best is not None else None
        if kept is None or not _equal(kept, self.folder):
            self._put_aside()
        if kept is not None and not self.folder.is_dir():
            with writing(self._run):
                shutil.copytree(kept, partial := self._partial())
                partial.rename(self.folder)
        self._record(course)
        return course

    def measure(self, course: Course, step: int) -> Course:
        """Measure the policy after a step, keep it if it is the best, and return the course with it."""
        self._measures.during(step)
        return self.look(course, step)

    def look(self, course: Course, step: int) -> Course:
        """Keep the policy after a step that was measured if it is the best, and return the course with it."""
        value = self._measures.read(step)
        if value is None:
            self.say(f"step {step}: no item has {self._metric.name}, so the step is passed over")
            return course
        course = course.with_reading(step, value)
        words = f"step {step}: {self._metric.name} {course.said(value)}"
        if course.best is not None and course.best.step == step:
            self._keep(course)
            words += f", the best so far, kept in {self.folder}"
        self.say(words)
        self._record(course)
        return course

    def _keep(self, course: Course) -> None:
        """Written aside and renamed: `best/` is whole, or it is not there."""
        with writing(self._run):
            partial, old = self._partial(), self._run / f".{BEST}.old"
            self._save(partial)
            write_document(partial / BEST_FILE, course.summary())
            if self.folder.is_dir():
                self.folder.rename(old)
            partial.rename(self.folder)
            shutil.rmtree(old, ignore_errors=True)

    def _partial(self) -> Path:
        """A place without what a crash left there."""
        for name in ("old", "partial"):
            shutil.rmtree(self._run / f".{BEST}.{name}", ignore_errors=True)
        return self._run / f".{BEST}.partial"

    def _put_aside(self) -> None:
        """What is in `best/` is of another course, as checkpoints of later steps are."""
        if self.folder.is_dir():
            passed = self._run / f"passed-over-{BEST}"
            shutil.rmtree(passed, ignore_errors=True)
            self.folder.rename(passed)
            self.say(f"{self.folder} is not of this course, and kept as {passed.name} until you remove it")

    def _record(self, course: Course) -> None:
        write_document(self._run / COURSE, course.document())


class KeepBest(TrainerCallback):
    """Measures every so many steps, the last one too, and stops after `patience` measurements that were not better.

    Every process has one, so that all of them stop at the same step. The course is in the run's state, with
    transformers' `best_metric` and `best_global_step`.

    Args:
        every: steps.
        patience, min_gain: as in the recipe.
        keeper: of the first process; None in the others.
    """

    def __init__(self, every: int, patience: int | None, min_gain: float, keeper: BestKeeper | None) -> None:
        self._every, self._patience, self._min_gain, self._keeper = every, patience, min_gain, keeper
        self.course: Course | None = None
        """So far; None before training."""
        self.stops = False
        """Whether patience is at its end."""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take up the course of the checkpoint; a run that had stopped already stops again."""
        stored = state.stateful_callbacks.get(STATE)
        self._take(state, self._of_first(lambda keeper: keeper.begin(stored)))
        self._stop(args, state, control)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Come after all that only looks on: the others wait here while the first process measures."""
        step, course = state.global_step, self.course
        if step % self._every == 0:
            assert course is not None, "training has begun"
            self._take(state, self._of_first(lambda keeper: keeper.measure(course, step)))
        self._stop(args, state, control)

    def finish(self, step: int) -> Course:
        """Look at the policy after its last step, when everything is measured. In the first process.

        What is found is not in the run's state: a run that goes on does not measure at this step.
        """
        assert self.course is not None and self._keeper is not None, "the first process has trained"
        if step % self._every:
            self.course = self._keeper.look(self.course, step)
        return self.course

    def _of_first(self, make: Callable[[BestKeeper], Course]) -> Course:
        def made() -> Course:
            assert self._keeper is not None, "the first process has it"
            return make(self._keeper)

        return ranks.of_first(made)

    def _take(self, state: TrainerState, course: Course) -> None:
        self.course, best = course, course.best
        self.stops = self._patience is not None and course.waited(min_gain=self._min_gain) >= self._patience
        state.stateful_callbacks[STATE] = course.document()
        state.best_metric = None if best is None else best.value.mean
        state.best_global_step = None if best is None else best.step

    def _stop(self, args: Any, state: TrainerState, control: TrainerControl) -> None:
        """Between two updates on the same rollouts nothing is saved: the run ends after the last of them."""
        if self.stops and state.global_step % args.num_iterations == 0:
            control.should_save = True
            control.should_training_stop = True


def stopped_words(course: Course, step: int, num_steps: int) -> str:
    """One sentence on a run that ended because it got no better."""
    best = course.best
    assert best is not None, "nothing was waited for"
    count = sum(reading.step > best.step for reading in course.readings)
    measured = "measurement" if count == 1 else "measurements"
    return (
        f"stopped early at step {step} of {num_steps}: {count} {measured} after step {best.step} brought no better "
        f"{course.metric.name} than its {course.said(best.value)}; a larger eval.patience goes on"
    )


def best_words(course: Course, folder: Path) -> str:
    """The last line of a run: which step is kept, and next to it what was measured before and after training."""
    best = course.best
    if best is None:
        return f"no adapter was kept: no step has {course.metric.name}"
    others = [] if course.base is None else [f"before training {course.said(course.base)}"]
    if course.readings[-1] != best:
        others.append(f"after the last step {course.said(course.readings[-1].value)}")
    words = f"best adapter: {folder / BEST}, of step {best.step}: {course.metric.name} {course.said(best.value)}"
    return f"{words}; {', '.join(others)}" if others else words


def save_trained(recipe: Recipe, loaded: LoadedPolicy, folder: Path) -> None:
    """Write what is trained: an adapter in PEFT's layout, or a folder of weights that `model.path` takes.

    Raises:
        RunError: the disk has too little room.
    """
    module, text = loaded.policy.module, dump_resolved(recipe)
    refuse_without_room(folder, weights_bytes(module), "the trained weights")
    if adapted_layers(module):
        save_adapter(module, folder, fingerprint=loaded.fingerprint, recipe_text=text)
    else:
        loaded.backbone.save(loaded.policy, folder)
        (folder / RECIPE_FILE).write_text(text, encoding="utf-8")


def _equal(kept: Path, folder: Path) -> bool:
    """Whether every file of one folder is in the other, byte for byte; an exported adapter has a card in addition."""
    names = [path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()]
    same, _, _ = filecmp.cmpfiles(kept, folder, names, shallow=False)
    return len(same) == len(names)
