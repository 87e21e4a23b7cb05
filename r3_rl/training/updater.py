"""One update of the weights: the gradient of a step, combined where objectives conflict, clipped and taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from r3_rl import ranks
from r3_rl.balance.conflict import place_of
from r3_rl.balance.gates import by_place, gates_of, imbalance, numbers
from r3_rl.balance.gradients import Balancer
from r3_rl.errors import InputError, RunError
from r3_rl.observe.numbers import Numbers
from r3_rl.policy.adapters import drops, training_mode
from r3_rl.policy.backbone import GENERATION, Branches, branch_of
from r3_rl.policy.base import Policy
from r3_rl.training.arguments import settings_of
from r3_rl.training.batcher import Batcher
from r3_rl.training.config import R3Config
from r3_rl.training.credit import Credit
from r3_rl.training.optimizer import over_epsilon_of, step_size
from r3_rl.training.parallel import Learner
from r3_rl.training.teaching import Teacher
from r3_rl.training.update import DEVIATIONS, LossSettings, accumulate, step_sizes


class Updater:
    """Learns from the credits of a step, or from its right examples.

    Args:
        policy: what is trained of it requires gradient.
        learner: holds and steps it.
        args: of the run.
        batcher: cuts credits into micro-batches.
        teacher: makes right examples, in runs that learn from them.
        tell: is told the names of callbacks' events around the optimiser's step.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        learner: Learner,
        args: R3Config,
        batcher: Batcher,
        teacher: Teacher | None,
        tell: Callable[[str], None],
    ) -> None:
        self.policy, self.learner, self.args, self.batcher = policy, learner, args, batcher
        self.teacher, self.tell = teacher, tell
        self.losses = settings_of(LossSettings, args).losses()
        branches = policy.spec.branches
        self.balancer = Balancer(
            {p: place_of(name, branch_of(name, branches)) for p, name in learner.names.items()},
            aggregator=args.aggregator,
            probe_every=args.probe_every,
            seed=args.seed,
            by_stage=args.objectives == "stage",
            over_parts=learner.over_parts if learner.in_parts else None,
            kept_from_images=_not_drawing(learner, branches) if args.image_gradients == GENERATION else (),
        )
        self.on_gates: Callable[[int, dict[str, Any]], None] | None = None
        """Called with the gates of a routed adapter every `probe_every` steps."""

    def learn(self, number: int, credits: Sequence[Credit]) -> Numbers:
        """One update of the weights from this process's credits and those of the others."""
        return self._step(number, partial(self.accumulate, number, credits))

    def teach(self, number: int) -> Numbers:
        """The same from the examples of a supervised step."""
        return self._step(number, partial(self._taught, number))

    def _step(self, number: int, gradient: Callable[[], Numbers]) -> Numbers:
        """One update from the gradient that a call leaves in what the optimiser steps; the call returns its numbers."""
        with step_size(self.policy.module) as moved:
            numbers = gradient()
            # with dropout the ratio of a first pass is not 1, and its deviation says nothing about rollout and replay
            if number % self.args.num_iterations or drops(self.policy.module):
                numbers = Numbers({n: v for n, v in numbers.items() if n not in DEVIATIONS}, numbers.sizes)
            norm = self.learner.norm()
            if not torch.isfinite(norm):
                raise RunError(
                    "the gradient is not finite",
                    hint="lower training.learning_rate or eta; the last checkpoint is good",
                )
            over_epsilon = over_epsilon_of(self.learner.branch_of, self.args.adam_epsilon)
            rate = self.learner.scheduler.get_last_lr()[0]
            measured = {"grad_norm": float(norm), "learning_rate": float(rate), **over_epsilon}
            self.tell("on_pre_optimizer_step")
            self.learner.step(norm)
        self.tell("on_optimizer_step")
        return numbers | measured | moved

    def accumulate(self, number: int, credits: Sequence[Credit]) -> Numbers:
        """The gradient of a step, left in what the optimiser steps. Here and in a supervised step the module is in
        training mode, and nowhere else."""
        with training_mode(self.policy.module, seed=(self.args.seed, number, ranks.rank())):
            found = self.balancer.accumulate(number, credits, self.add_gradient, step_sizes(credits))
        return found | self._balance_gates(number)

    def _taught(self, number: int) -> Numbers:
        assert self.teacher is not None
        with training_mode(self.policy.module, seed=(self.args.seed, number, ranks.rank())):
            return self.teacher.step(number, self.policy, self.learner, self.batcher)

    def _balance_gates(self, number: int) -> dict[str, float]:
        """Add the gradient of the loss that keeps all parts of a routed adapter in use, to one that is added up over
        the processes already; return how the gates stand."""
        if not (gates := gates_of(self.policy.module)):
            return {}
        if self.args.gate_balance:
            self.learner.backward(self.args.gate_balance * imbalance(gates))
        if self.on_gates is not None and self.args.probe_every and number % self.args.probe_every == 0:
            self.on_gates(number, by_place(gates, self.policy.spec.branches))
        return numbers(gates)

    def add_gradient(self, credits: Sequence[Credit], normalisers: tuple[float, float]) -> Numbers:
        """Add the gradient of some of this process's credits to what the optimiser steps; return their numbers."""
        return accumulate(self.batcher, credits, self.losses, self.learner, normalisers)


def _not_drawing(learner: Learner, branches: Branches) -> list[torch.nn.Parameter]:
    """What is trained outside of the branch that draws. Raises InputError when that is all."""
    found = [p for p, name in learner.names.items() if branch_of(name, branches) != GENERATION]
    if len(found) == len(learner.names):
        raise InputError(
            "nothing of the generation branch is trained, so nothing would learn from images",
            hint="set balance.image_gradients to 'all'",
        )
    return found
