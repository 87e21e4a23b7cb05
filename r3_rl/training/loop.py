"""The training loop, top to bottom: train -> step -> roll out, learn, measure -> log -> save.

One optimiser step is one step of the schedule. Every process runs the same lines on its share of the prompts.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, set_seed
from transformers.trainer_callback import CallbackHandler, TrainerControl, TrainerState
from transformers.trainer_utils import TrainOutput

from r3_rl import ranks
from r3_rl.errors import RunError
from r3_rl.modalities import TextSegment
from r3_rl.observe.memory import held_bytes, peak_bytes
from r3_rl.observe.numbers import Numbers, combine
from r3_rl.policy.adapters import adapter_merged
from r3_rl.policy.base import Policy
from r3_rl.rollout.engine import Stopwatch
from r3_rl.rollout.prompts import PromptStream
from r3_rl.scoring.base import RunProgress
from r3_rl.scoring.panel import Panel
from r3_rl.training.arguments import refuse_training
from r3_rl.training.batcher import Batcher
from r3_rl.training.callbacks import TimeBudgetCallback, saves_after
from r3_rl.training.checkpoint import keep_newest, load_checkpoint, pass_over, read_state, save_checkpoint
from r3_rl.training.config import R3Config
from r3_rl.training.earned import shared_noise
from r3_rl.training.manifest import Checkpoint, checked
from r3_rl.training.parallel import Learner
from r3_rl.training.room import RoomCallback, weights_bytes
from r3_rl.training.saving import Saving, Savings
from r3_rl.training.schedules import Collected, Schedule
from r3_rl.training.teaching import Teacher
from r3_rl.training.updater import Updater
from r3_rl.types import Verdict


class Loop:
    """A run of optimiser steps; `R3Trainer` makes one.

    Args:
        policy: what is trained of it requires gradient.
        learner: holds and steps it.
        args: of the run.
        panel, held_out: what is trained on; what is only watched.
        prompts: of the run.
        schedule: collects and credits the rollouts of a step.
        batcher: cuts credits into micro-batches.
        watch: where the schedule's engine keeps its seconds.
        base_fingerprint: kept beside a saved adapter.
        callbacks: in the order in which they are called.
        teacher: takes the schedule's place, in runs that learn from right examples.
        on_collected: called with every step's rollouts.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        learner: Learner,
        args: R3Config,
        panel: Panel,
        held_out: Panel | None,
        prompts: PromptStream,
        schedule: Schedule,
        batcher: Batcher,
        watch: Stopwatch,
        base_fingerprint: str,
        callbacks: Sequence[TrainerCallback],
        teacher: Teacher | None,
        on_collected: Callable[[int, Collected], None] | None,
    ) -> None:
        self.policy, self.learner, self.args, self.watch = policy, learner, args, watch
        self.panel, self.held_out, self.prompts, self.schedule = panel, held_out, prompts, schedule
        self.base_fingerprint, self.on_collected = base_fingerprint, on_collected
        self.updater = Updater(
            policy=policy, learner=learner, args=args, batcher=batcher, teacher=teacher, tell=self._tell
        )
        self.time_budget = TimeBudgetCallback()
        room = RoomCallback(self._checkpoint_bytes)
        self.handler = CallbackHandler([*callbacks, self.time_budget, room], policy.module, None, None, None)
        self.state, self.control = TrainerState(), TrainerControl()
        self.beside: Path | None = None
        """A folder that belongs to the state, such as the best adapter so far: every checkpoint has a copy."""
        self.savings = Savings(self._saved_one)
        self._collected: Collected | None = None
        self._asked: list[Future[list[Verdict]]] = []
        self._flat_steps: deque[bool] = deque(maxlen=args.max_zero_variance_steps)
        self._tell("on_init_end")

    def train(self, resume_from_checkpoint: str | Path | Checkpoint | None = None) -> TrainOutput:
        """Train to the end of `args.max_steps`, of the time budget, or until a callback stops the run.

        Args:
            resume_from_checkpoint: a checkpoint, or its folder, whose files are checked first: the run goes on as if it
                had not been interrupted.

        Returns:
            Steps, mean loss of the steps of this call, seconds.

        Raises:
            InputError: weights that cannot be trained like this.
            CheckpointError: a checkpoint that is damaged, or of another kind of run.
            RunError: nothing to learn from, or numbers that are not finite.
        """
        args, begin, lines, losses = self.args, time.perf_counter(), list[Numbers](), list[float]()
        self.prepare(resume_from_checkpoint)
        self._tell("on_train_begin")
        with self.savings:
            while self.state.global_step < args.max_steps and not self.control.should_training_stop:
                # the disk is looked at before a step that saves, and what is no longer kept is then gone
                self.savings.settle(wait=saves_after(args, self.state.global_step + 1))
                self._tell("on_step_begin")
                numbers = self.step(self.state.global_step)
                self.state.global_step += 1
                lines.append(numbers)
                losses.append(numbers["loss"])
                self._tell("on_step_end")
                if self.control.should_log:
                    self.log(combine(lines, over="steps"))
                    lines.clear()
                if self.control.should_save:
                    self._save()
        seconds = time.perf_counter() - begin
        found = {
            "train_runtime": seconds,
            "train_steps_per_second": len(losses) / seconds,
            "train_loss": sum(losses) / max(len(losses), 1),
        }
        self.log(found)
        self._tell("on_train_end")
        return TrainOutput(self.state.global_step, found["train_loss"], found)

    def _save(self) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        self.state.stateful_callbacks["balancer"] = self.updater.balancer.state()
        self.state.stateful_callbacks["progressive"] = self.schedule.progressive.state()
        self.savings.begin(partial(save_checkpoint, folder, **self._saved(), state=self.state, beside=self.beside))

    def _saved_one(self, saving: Saving) -> None:
        if ranks.rank() == 0:
            keep_newest(saving.folder, self.args.save_total_limit)
        self.control = self.handler.on_save(self.args, saving.state, self.control)

    def step(self, number: int) -> Numbers:
        """One step, counted from 0: its numbers, of all processes."""
        begin = time.perf_counter()
        if self.updater.teacher is not None:
            taught = self.updater.teach(number)
            seconds = time.perf_counter() - begin
            own = taught | self._memory() | {"time/update_s": seconds, "time/step_s": seconds}
            return combine(ranks.everyone(own), over="ranks")
        self.watch.seconds.clear()
        collected = self.roll_out(number)
        rolled_out = time.perf_counter()
        learned = self.updater.learn(number, collected.credits)
        updated = time.perf_counter()
        asked, self._asked = self._asked, []
        for answer in asked:
            answer.result()
        held_out = self.held_out.metrics() if self.held_out is not None and asked else Numbers()
        collected.metrics |= held_out
        done = time.perf_counter()
        texts = [c.segment for c in collected.credits if isinstance(c.segment, TextSegment)]
        measured = {
            **{f"time/{name}_s": value for name, value in self.watch.seconds.items()},
            "num_tokens": sum(len(text.token_ids) for text in texts),
            **self._memory(),
            "time/update_s": updated - rolled_out,
            **({"time/held_out_s": done - updated} if held_out else {}),
            "time/step_s": done - begin,
            "tree/pool_size": sum(map(len, self.schedule.pool.groups)),
        }
        own = collected.metrics | learned | shared_noise(collected.leaves) | measured
        numbers = combine(ranks.everyone(own), over="ranks")
        if "reward" in numbers and collected.phase != "answer":
            # the next step's rate is set already: a plateau ends the apart phase with the step after it
            after = (number + 2) / self.args.max_steps
            self.schedule.progressive.observe(after, {collected.phase: numbers["reward"]})
        self.state.num_input_tokens_seen += int(numbers["num_tokens"])  # since the start: the state outlives a resume
        return numbers | {"num_tokens": self.state.num_input_tokens_seen}

    def roll_out(self, number: int) -> Collected:
        """Fresh rollouts, or the last ones again for `num_iterations` updates."""
        if self._collected is not None and number % self.args.num_iterations:
            return self._collected
        turn = number // self.args.num_iterations
        for panel in (self.panel, self.held_out):
            if panel is not None:
                panel.trainer_state = RunProgress(global_step=number, max_steps=self.args.max_steps)
        self.policy.module.eval()
        with torch.no_grad(), adapter_merged(self.policy.module):
            collected = self.schedule.collect(
                turn,
                self.prompts.batch(turn, ranks.rank(), ranks.count()),
                seed=self.args.seed * 1_000_003 + turn,
                progress=number / max(self.args.max_steps, 1),
            )
        collected.metrics |= self.panel.metrics()
        self.panel.prove()
        # held-out scorers see what the others saw, while the weights are updated: nothing of the update waits
        batches, self.schedule.engine.batches = self.schedule.engine.batches, []
        self._asked = [self.held_out.submit(batch) for batch in batches] if self.held_out is not None else []
        flat = all(stage.num_flat_groups == stage.num_groups for stage in collected.stages)
        self._flat_steps.append(all(ranks.everyone(flat)))
        if len(self._flat_steps) == self._flat_steps.maxlen and all(self._flat_steps):
            raise RunError(
                f"all groups had equal rewards for {len(self._flat_steps)} steps: there is nothing to learn",
                hint="use a scorer with finer scores, harder prompts, more peers or a higher temperature",
            )
        if self.on_collected is not None:
            self.on_collected(number, collected)
        self._collected = collected
        return collected

    def _memory(self) -> dict[str, float]:
        device = next(self.policy.module.parameters()).device
        return {"memory/peak_bytes": peak_bytes(device), "memory/held_bytes": held_bytes(device)}

    def log(self, logs: dict[str, float] | Numbers) -> None:
        """Keep a line in the state's history and hand it to the callbacks."""
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self._tell("on_log", logs=dict(logs))

    def prepare(self, checkpoint: str | Path | Checkpoint | None = None) -> None:
        """Make the optimiser and a fresh state, or those of a checkpoint; `train` calls it."""
        refuse_training(self.learner.names, self.args)
        self.learner.prepare(lambda: self.time_budget.used, self.schedule.progressive)
        self.handler.optimizer, self.handler.lr_scheduler = self.learner.optimizer, self.learner.scheduler
        self.state = TrainerState()
        set_seed(self.args.seed)  # for scorers that draw from the global generators
        if checkpoint is not None:
            if not isinstance(checkpoint, Checkpoint):
                checkpoint = ranks.of_first(partial(checked, Path(checkpoint)))
            self.state = read_state(checkpoint)
            self.updater.balancer.load(self.state.stateful_callbacks.get("balancer", {}))
            # before the learner, whose rate follows from it
            self.schedule.progressive.load(self.state.stateful_callbacks.get("progressive", {}))
            load_checkpoint(checkpoint, **self._saved())
            if ranks.rank() == 0:
                pass_over(checkpoint, Path(self.args.output_dir))
        self.state.max_steps, self.state.is_world_process_zero = self.args.max_steps, ranks.rank() == 0
        self.state.is_local_process_zero = ranks.local_rank() == 0

    def _saved(self) -> dict[str, Any]:
        """What a checkpoint holds beside the state."""
        module, pool = self.policy.module, self.schedule.pool
        return {"module": module, "fingerprint": self.base_fingerprint, "pool": pool, "learner": self.learner}

    def _checkpoint_bytes(self) -> int:
        """How large the next checkpoint becomes, about; the images of the other processes' pools are as many."""
        kept = [vars(node.sample).values() for group in self.schedule.pool.groups for node in group]
        images = sum(value.nbytes for values in kept for value in values if isinstance(value, torch.Tensor))
        adapter = weights_bytes(self.policy.module) if self.learner.adapted else 0
        beside = 0 if self.beside is None else weights_bytes(self.policy.module)
        return adapter + beside + self.learner.saved_bytes() + images * ranks.count()

    def _tell(self, event: str, **more: Any) -> None:
        self.control = getattr(self.handler, event)(self.args, self.state, self.control, **more)
