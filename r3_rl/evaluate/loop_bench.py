"""The bench of the loop in a world: the images, what is said about them and what becomes of them, in both decodings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from r3_rl.assemble import loop_settings, world_tags
from r3_rl.evaluate.base import SEED
from r3_rl.evaluate.critics import measure_critics
from r3_rl.evaluate.drafting import in_turns, measure_drafts, sample_drafts
from r3_rl.evaluate.fixed_sets import FixedSets, LoopItems, OwnDrafts, Sizes
from r3_rl.evaluate.measured import Measured, Values, decodings, entropies
from r3_rl.evaluate.painting import (
    held_out_loop,
    measure_edits,
    measure_instructions,
    measure_true_plans,
    plan_and_painter,
)
from r3_rl.evaluate.reading import answers, measure_pairs, measure_questions, of_own_images
from r3_rl.evaluate.reflection import edited_and_repaired, measure_loop, read, refine_once, stops_if_right, swap_test
from r3_rl.observe.statistics import Interval
from r3_rl.policy.base import Policy
from r3_rl.recipe import Recipe
from r3_rl.stages.settings import LoopSettings
from r3_rl.types import Prompt, Trajectory, Verdict
from r3_rl.worlds.base import World, find_world
from r3_rl.worlds.sets import verdicts


@dataclass(frozen=True, kw_only=True, eq=False)
class LoopBench:
    """Every figure of `observe.measures`: with texts sampled as the settings say, and with greedy ones.

    A figure without items (say, of wrong drafts if none is wrong) is left out.
    """

    world: World[Any]
    settings: LoopSettings
    sizes: Sizes
    tags: tuple[str, ...] | None = None
    """Kinds of the prompts; None is all."""
    rounds: int = 2

    @classmethod
    def of(cls, recipe: Recipe, **sizes: int) -> LoopBench:
        """The bench of a recipe's world, with `training.eval_prompts` prompts and at most `training.eval_items` of
        everything else if `sizes` does not say otherwise."""
        num_prompts, limit = recipe.training.eval_prompts, recipe.training.eval_items
        found = Sizes(num_prompts=num_prompts)
        if limit is not None:
            found = replace(found.at_most(limit), num_prompts=num_prompts)
        return cls(
            world=find_world(recipe.data.world),
            settings=loop_settings(recipe.rollout),
            sizes=replace(found, **sizes),
            tags=world_tags(recipe.data),
            rounds=recipe.rollout.rounds,
        )

    def items(self, limit: int | None = None, seed: int = 0) -> LoopItems:
        """Return the sets that a first run measures on; `run` returns them with the base's own drafts."""
        sizes = self.sizes if limit is None else self.sizes.at_most(limit)
        return LoopItems.of(self.world, sizes, tags=self.tags, seed=SEED + seed)

    def judge(self, images: Sequence[torch.Tensor], prompts: Sequence[Prompt]) -> list[Verdict]:
        """Return what the world's inspector says: 1 or less, with words."""
        return verdicts(self.world, images, prompts)

    def figures(self, rows: Measured) -> dict[str, Interval]:
        """Return shares with Wilson's 95 % intervals, and means with a bootstrap's."""
        return rows.intervals()

    def run(self, policy: Policy, items: LoopItems) -> Measured:
        """Measure everything, in one phase. The first one also fixes the drafts that every later one is judged on: run
        the base first, and the trained policy on `Measured.items` of the base."""
        words = {f"questions/{kind}": said for kind, said in self.world.question_kinds.items()}
        out, settings, seed = Measured(words=words), self.settings, items.seed
        for suffix, how in decodings(settings).items():
            loop = measure_loop(
                policy, items.prompts, how, self.judge, rounds=self.rounds, seed=seed, harder=self.world.harder_tags
            )
            out.add(loop.values | plan_and_painter(self.world, loop.trajectories), suffix)
            out.add(held_out_loop(self.world, loop.trajectories), suffix)
            out.trajectories = out.trajectories or loop.trajectories
            others = measure_loop(policy, items.others, how, self.judge, rounds=self.rounds, seed=seed + 13).values
            out.add({f"other_{name}": others.get(name, []) for name in ("draft", "final")}, suffix)
        walked = out.trajectories
        drafts = sample_drafts(policy, walked, settings, self.judge, rounds=self.rounds, seed=seed + 7)
        own = OwnDrafts.of(in_turns(drafts), limit=items.sizes.num_swap)
        fixed = items.fixed or FixedSets.of(self.world, walked, own, items.sizes, tags=self.tags, seed=seed)
        for suffix, how in decodings(settings).items():
            out.add(self._reflection(policy, how, fixed, seed), suffix)
            out.add(self._understanding(policy, how, items, walked), suffix)
            found = _own_images(policy, how, own, seed)
            # in the first phase the base's drafts are these, and would be read with the same seeds
            base = found["ita_own_drafts"] if items.fixed is None else _stops(policy, how, fixed.base_drafts, seed)
            out.add({**found, "ita_base_drafts": base}, suffix)
        out.add(measure_drafts(policy, drafts, settings, rounds=self.rounds, seed=seed + 9))
        out.add(self._painter(policy, items))
        of_critics = fixed.wrong.spread(items.sizes.num_critics)
        greedily = settings.for_evaluation(0.0)
        out.add(measure_critics(self.world, policy, of_critics, greedily, self.judge, seed=seed + 14))
        if settings.plan is not None and settings.plan.temperature > 0:
            out.add({"entropy_plan": entropies([t.rounds[0].plan for t in walked])})
        out.items = replace(items, fixed=fixed)
        return out

    def _reflection(self, policy: Policy, settings: LoopSettings, fixed: FixedSets, seed: int) -> Values:
        """On fixed wrong and right drafts."""
        refined = refine_once(policy, fixed.wrong, settings, seed=seed + 1)
        kept = read(policy, fixed.rights, settings, seed + 1)
        return {
            **edited_and_repaired(refined, fixed.wrong.prompts, self.judge),
            "right_drafts_kept": [float(c.stop) for c in kept],
            **measure_instructions(self.world, fixed.synthetic, refined[: len(fixed.synthetic)]),
        }

    def _understanding(
        self, policy: Policy, settings: LoopSettings, items: LoopItems, walked: Sequence[Trajectory]
    ) -> Values:
        """On images of the world, and on drafts of the sampled loop."""
        world, sampling, seed = self.world, settings.critique, items.seed
        own = of_own_images(world, walked, items.sizes.num_own_questions, seed=seed + 10)
        return {
            **measure_pairs(world, policy, items.pairs, settings, seed=seed + 8),
            **measure_questions(policy, items.questions, sampling, kinds=world.question_kinds, seed=seed),
            "questions_own": answers(policy, own, sampling, seed=seed + 10),
        }

    def _painter(self, policy: Policy, items: LoopItems) -> Values:
        """With true texts, so that no decoding matters."""
        world, settings, seed = self.world, self.settings, items.seed
        return {
            **measure_true_plans(world, policy, items.plans, settings, seed=seed + 11),
            "true_edit_drawn": measure_edits(world, policy, items.edits, settings, seed=seed),
        }


def _own_images(policy: Policy, settings: LoopSettings, own: OwnDrafts, seed: int) -> Values:
    """The policy's own drafts, read by its own critic and, the wrong ones, by the base's."""
    of_wrong = read(policy, own.wrongs, settings, seed + 2)
    of_right = read(policy, own.rights, settings, seed + 6)
    with policy.reference():
        by_base = read(policy, own.wrongs, settings, seed + 2)
    ita = stops_if_right(of_right, of_wrong[: len(of_right)])["ita"]
    return {**swap_test(of_wrong, by_base), "ita_own_drafts": ita}


def _stops(policy: Policy, settings: LoopSettings, drafts: OwnDrafts, seed: int) -> list[float]:
    of_wrong = read(policy, drafts.wrongs, settings, seed + 2)
    return stops_if_right(read(policy, drafts.rights, settings, seed + 6), of_wrong)["ita"]
