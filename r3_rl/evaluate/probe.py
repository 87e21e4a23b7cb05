"""`r3 probe`: where plans, drafts, critiques and refinements pull against each other, before anything is trained.

The gradient of each stage is measured several times on fresh rollouts, and nothing is stepped. A cosine of two measured
gradients is mostly noise: even one stage's gradients of two steps may be nearly orthogonal. So the cosine of what lies
under the noise is estimated, from dot products of gradients of unlike steps alone:

    cos(a, b) = S_ab / sqrt(S_aa S_bb),   S_ab = mean over i != j of <g_a(step i), g_b(step j)>

with a jackknife's 95 % interval over the steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from scipy.stats import t as student
from torch import Tensor

from r3_rl.assemble import load_policy
from r3_rl.balance.conflict import cosines, grams_by_place
from r3_rl.errors import InputError
from r3_rl.evaluate.build import build_trainer
from r3_rl.observe.statistics import Interval
from r3_rl.policy.adapters import load_adapter, training_mode
from r3_rl.recipe import Recipe
from r3_rl.recipe.branching import PHASES
from r3_rl.training.credit import Credit
from r3_rl.training.trainer import R3Trainer
from r3_rl.training.update import step_sizes

FEWEST = 3
"""Steps below which a jackknife says nothing."""
ALL = "all"


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """Dot products of the gradients of m objectives in each of S steps."""

    objectives: tuple[str, ...]
    grams: Mapping[str, Tensor]
    """By place, then by branch, then `ALL`: float64 [S, m, S, m]."""

    @property
    def num_steps(self) -> int:
        """S."""
        return len(self.grams[ALL])

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """Of objectives, by their places."""
        return list(combinations(range(len(self.objectives)), 2))

    def measured(self, place: str) -> Tensor:
        """Cosines of gradients of one step as they were measured, mean over the steps, [m, m]."""
        gram = self.grams[place]
        return torch.stack([cosines(gram[i, :, i]) for i in range(self.num_steps)]).nanmean(dim=0)

    def agreement(self, place: str) -> Tensor:
        """Cosine of one objective's gradients in two steps, mean over all pairs of steps, [m]; 1 is no noise."""
        gram, steps = self.grams[place], list(combinations(range(self.num_steps), 2))
        norms = torch.stack([gram[i, :, i].diagonal().sqrt() for i in range(self.num_steps)])
        return torch.stack([gram[i, :, j].diagonal() / (norms[i] * norms[j]) for i, j in steps]).nanmean(dim=0)

    def norms(self, place: str) -> Tensor:
        """Root mean square of the gradients' norms, [m]."""
        gram = self.grams[place]
        return torch.stack([gram[i, :, i].diagonal() for i in range(self.num_steps)]).mean(dim=0).sqrt()

    def cosine(self, place: str, a: int, b: int) -> Interval | None:
        """Of the gradients under the noise; None where one of them is not to be seen in it."""
        gram, steps = self.grams[place], list(range(self.num_steps))
        whole = _signal_cosine(gram, steps, a, b)
        left_out = [_signal_cosine(gram, [s for s in steps if s != out], a, b) for out in steps]
        if whole is None or any(value is None for value in left_out):
            return None
        values = torch.tensor(left_out, dtype=torch.float64)
        error = ((len(steps) - 1) / len(steps) * (values - values.mean()).square().sum()).sqrt()
        half = float(student.ppf(0.975, len(steps) - 1) * error)
        return Interval(mean=whole, low=max(whole - half, -1.0), high=min(whole + half, 1.0), count=len(steps))


def _signal_cosine(gram: Tensor, steps: list[int], a: int, b: int) -> float | None:
    part = gram[steps][:, :, steps]
    unlike = part.sum(dim=(0, 2)) - torch.diagonal(part, dim1=0, dim2=2).sum(dim=-1)
    if unlike[a, a] <= 0 or unlike[b, b] <= 0:
        return None
    mean = (unlike[a, b] + unlike[b, a]) / 2
    return float((mean / (unlike[a, a] * unlike[b, b]).sqrt()).clamp(-1, 1))


def probe(recipe: Recipe, *, adapter: Path | None = None, num_steps: int = 6) -> Probe:
    """Measure the gradients of a recipe's stages. Nothing is trained or left behind.

    Args:
        recipe: whose policy, rewards, schedule and prompts are taken; all stages of its schedule are rolled out with
            the same weights.
        adapter: of a run, to measure what it trained; None measures the base with a fresh adapter, or the full weights
            with `lora.enabled: false`.
        num_steps: measurements, `FEWEST` at least.

    Raises:
        InputError: too few steps, or stages of which none or only one has anything to learn.
    """
    if num_steps < FEWEST:
        raise InputError(f"{num_steps} steps: an interval needs {FEWEST} at least")
    algorithm, balance = recipe.algorithm, recipe.balance
    recipe = recipe.model_copy(
        update={
            "algorithm": algorithm.model_copy(update={"num_iterations": 1, "max_zero_variance_steps": 10**9}),
            "balance": balance.model_copy(update={"objectives": "stage", "aggregator": "sum"}),
            "eval_rewards": (),
        }
    )
    loaded = load_policy(recipe.model, world=recipe.data.world)
    with TemporaryDirectory() as folder:
        trainer = build_trainer(recipe, loaded, Path(folder))
        try:
            if adapter is not None:
                load_adapter(loaded.policy.module, adapter, fingerprint=loaded.fingerprint)
            tree = recipe.algorithm.tree
            turns = tree.reason_steps + tree.reflect_steps if len(PHASES[algorithm.schedule]) > 1 else 1
            return _measured(trainer, num_steps, turns)
        finally:
            trainer.close()


def _measured(trainer: R3Trainer, num_steps: int, turns: int) -> Probe:
    """Steps of as many turns as the schedule needs to come to every stage."""
    steps: list[dict[str, Tensor]] = []
    for number in range(num_steps):
        credits: list[Credit] = []
        for turn in range(turns):
            credits += trainer.roll_out(number * turns + turn).credits
        updater = trainer.updater
        parts = updater.balancer.parts(credits)
        with training_mode(trainer.policy.module, seed=(trainer.args.seed, number)):
            vectors = trainer.updater.balancer.apart(
                parts, lambda part: trainer.updater.add_gradient(part, step_sizes(part))
            )
        steps.append(dict(zip(parts, vectors, strict=True)))
        print(f"step {number + 1}/{num_steps}: {', '.join(f'{len(p)} of {name}' for name, p in parts.items())}")
    objectives = tuple(name for name in steps[0] if all(name in step for step in steps))
    if len(objectives) < 2:
        seen = ", ".join(objectives) or "none"
        raise InputError(
            f"stages with something to learn in every step: {seen}; two are needed to compare",
            hint="take a schedule with more stages, more prompts a step or finer scores",
        )
    rows = [step[name] for step in steps for name in objectives]
    places = trainer.updater.balancer.places
    flat = grams_by_place(rows, [p.numel() for p in places], list(places.values()))
    shape = (num_steps, len(objectives), num_steps, len(objectives))
    return Probe(objectives=objectives, grams=_with_sums({place: gram.view(shape) for place, gram in flat.items()}))


def _with_sums(grams: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Places in order, their sums by branch, and the sum of all."""
    places = sorted(grams, key=lambda place: (place.split("/")[0], _number(place)))
    branches: dict[str, Tensor] = {}
    for place in places:
        branch = place.split("/")[0]
        branches[branch] = branches[branch] + grams[place] if branch in branches else grams[place]
    total = torch.stack(list(grams.values())).sum(dim=0)
    return {place: grams[place] for place in places} | (branches if len(branches) > 1 else {}) | {ALL: total}


def _number(place: str) -> float:
    number = place.split("/")[1]
    return float(number) if number.isdigit() else float("inf")
