"""The embedded world's bench: everything that is measured of a policy before and after training, in both decodings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from r3_rl.evaluate.drafting import in_turns, measure_drafts, sample_drafts
from r3_rl.evaluate.measured import Measured, Values, decodings, entropies
from r3_rl.evaluate.reflection import edited_and_repaired, measure_loop, read, refine_once, stops_if_right, swap_test
from r3_rl.evaluate.shapes_drawing import measure_edits, measure_instructions, measure_true_plans, plan_and_painter
from r3_rl.evaluate.shapes_reading import answers, measure_pairs, measure_questions, of_own_images, of_world
from r3_rl.evaluate.shapes_sets import SEED, FixedSets, OwnDrafts, digest
from r3_rl.policy.base import Policy
from r3_rl.stages.settings import LoopSettings
from r3_rl.types import Prompt, Trajectory, Verdict
from r3_rl.worlds.shapes.data import Answered, Edited, ShapesStream, held_out_questions, wrong_scene
from r3_rl.worlds.shapes.drawing import render, roughen_pixels
from r3_rl.worlds.shapes.inspector import inspect
from r3_rl.worlds.shapes.judging import judge as judge_scene
from r3_rl.worlds.shapes.pairs import Pair, fixed_pairs
from r3_rl.worlds.shapes.prompts import HARD_TAGS, TAGS, sample_prompts, sample_scene

ROUNDS = 2


def judge(images: Sequence[torch.Tensor], prompts: Sequence[Prompt]) -> list[Verdict]:
    """The exact inspector's verdict: 1 or 0, with words."""
    if not images:
        return []
    seen = inspect(np.stack([image.numpy() for image in images]))
    found = [judge_scene(s.objects, p) for s, p in zip(seen, prompts, strict=True)]
    return [
        Verdict(total=float(j.strict), scores={"strict": float(j.strict), "partial": j.partial}, words=j.words)
        for j in found
    ]


@dataclass(kw_only=True, eq=False)
class ShapesBench:
    """The sets of one run: made once, measured before and after.

    `measure` gives every figure of `observe.measures`: with texts sampled as the settings say, and with greedy ones.
    A figure without items (say, of wrong drafts where none is wrong) is left out.
    """

    num_prompts: int = 320
    num_fixed: int = 500
    """Wrong drafts of the fixed set: half synthetic, half the base's own (as far as it has so many)."""
    num_right: int = 200
    num_questions: int = 300
    num_swap: int = 200
    """Most wrong drafts of the current policy that its own and the base's critic read; its own reads as many right
    ones. They are fewer if `drafting.sample_drafts` found no more."""
    num_pairs: int = 120
    """Prompts with a right image and a near miss each."""
    num_plans: int = 200
    """True plans to draw."""
    num_edits: int = 200
    """True instructions to carry out."""
    num_own_questions: int = 150
    """Most questions about drafts of its own."""
    num_others: int = 120
    """Prompts of the kinds that `tags` leaves out."""
    tags: tuple[str, ...] | None = None
    """Kinds of the prompts; None is all."""
    rounds: int = ROUNDS
    fixed: FixedSets | None = None
    """None until something was measured."""

    def prompts(self) -> list[Prompt]:
        """The held-out prompts of every phase."""
        return sample_prompts(self.num_prompts, split="held_out", tags=self.tags, seed=SEED)

    def sets(self) -> dict[str, str]:
        """A digest of what each set asks for, known once something was measured."""
        return {name: digest(texts) for name, texts in self.items().items()}

    def items(self) -> dict[str, list[str]]:
        """What each item of each set asks for: on equal ones runs can be compared. The base's own drafts among the
        fixed ones are told by their prompts: their pixels differ in the last digit from one processor to the next."""
        asked = {
            "prompts": self.prompts(),
            "plans": self._plan_prompts(),
            "others": self._other_prompts(),
            "pairs": [pair.prompt for pair in self._pairs()],
        }
        if self.fixed is not None:
            base = self.fixed.base_drafts
            asked["wrong"], asked["right"] = list(self.fixed.wrong.prompts), list(self.fixed.rights.prompts)
            asked["base_drafts"] = [*base.rights.prompts, *base.wrongs.prompts]
        found = {name: [p.text for p in prompts] for name, prompts in asked.items()}
        found["edits"] = [e.instruction for e in self._edits()]
        return found | {"questions": [q.question for q in self._questions()]}

    def _plan_prompts(self) -> list[Prompt]:
        return sample_prompts(self.num_plans, split="held_out", tags=self.tags, seed=SEED + 12)

    def _other_prompts(self) -> list[Prompt]:
        tags = [tag for tag in TAGS if self.tags is not None and tag not in self.tags]
        return sample_prompts(self.num_others, split="held_out", tags=tags, seed=SEED + 13) if tags else []

    def _pairs(self) -> list[Pair]:
        return fixed_pairs(self.num_pairs, tags=self.tags)

    def _edits(self) -> list[Edited]:
        return ShapesStream(seed=SEED + 5).edits(self.num_edits)

    def _questions(self) -> list[Answered]:
        return held_out_questions(self.num_questions, SEED + 4)

    def measure(self, policy: Policy, settings: LoopSettings) -> Measured:
        """Everything, in one phase. The first call also fixes the drafts that both phases are judged on."""
        out = Measured()
        for suffix, how in decodings(settings).items():
            loop = measure_loop(policy, self.prompts(), how, judge, rounds=self.rounds, seed=SEED, harder=HARD_TAGS)
            out.add(loop.values | plan_and_painter(loop.trajectories), suffix)
            out.trajectories = out.trajectories or loop.trajectories
            others = measure_loop(policy, self._other_prompts(), how, judge, rounds=self.rounds, seed=SEED + 13).values
            out.add({f"other_{name}": others.get(name, []) for name in ("draft", "final")}, suffix)
        walked = out.trajectories
        drafts = sample_drafts(policy, walked, settings, judge, rounds=self.rounds, seed=SEED + 7)
        own = OwnDrafts.of(in_turns(drafts), limit=self.num_swap)
        first = self.fixed is None
        fixed = self.fixed = self.fixed or FixedSets.of(
            walked, own, num_wrong=self.num_fixed, num_right=self.num_right, tags=self.tags
        )
        for suffix, how in decodings(settings).items():
            out.add(self._reflection(policy, how, fixed), suffix)
            out.add(self._understanding(policy, how, walked), suffix)
            found = _own_images(policy, how, own)
            # in the first phase the base's drafts are these, and would be read with the same seeds
            base = found["ita_own_drafts"] if first else _stops(policy, how, fixed.base_drafts)
            out.add({**found, "ita_base_drafts": base}, suffix)
        out.add(measure_drafts(policy, drafts, settings, rounds=self.rounds, seed=SEED + 9))
        out.add(self._painter(policy, settings))
        if settings.plan is not None and not settings.plan.greedy:
            out.add({"entropy_plan": entropies([t.rounds[0].plan for t in walked])})
        return out

    def _reflection(self, policy: Policy, settings: LoopSettings, fixed: FixedSets) -> Values:
        """On fixed wrong and right drafts."""
        refined = refine_once(policy, fixed.wrong, settings, seed=SEED + 1)
        kept = read(policy, fixed.rights, settings, SEED + 1)
        return {
            **edited_and_repaired(refined, fixed.wrong.prompts, judge),
            "right_drafts_kept": [float(c.stop) for c in kept],
            **measure_instructions(fixed.synthetic, refined[: len(fixed.synthetic)]),
        }

    def _understanding(self, policy: Policy, settings: LoopSettings, walked: Sequence[Trajectory]) -> Values:
        """On images of the world, and on drafts of the sampled loop."""
        own = of_own_images(walked, self.num_own_questions, seed=SEED + 10)
        return {
            **measure_pairs(policy, self._pairs(), settings, seed=SEED + 8),
            **measure_questions(policy, of_world(self._questions()), settings.critique, seed=SEED),
            "questions_own": answers(policy, own, settings.critique, seed=SEED + 10),
        }

    def _painter(self, policy: Policy, settings: LoopSettings) -> Values:
        """With true texts, so that no decoding matters."""
        return {
            "true_plan_drawn": measure_true_plans(policy, self._plan_prompts(), settings, judge, seed=SEED + 11),
            "true_edit_drawn": measure_edits(policy, self._edits(), settings, seed=SEED),
        }


def _own_images(policy: Policy, settings: LoopSettings, own: OwnDrafts) -> Values:
    """The policy's own drafts, read by its own critic and, the wrong ones, by the base's."""
    of_wrong = read(policy, own.wrongs, settings, SEED + 2)
    of_right = read(policy, own.rights, settings, SEED + 6)
    with policy.reference():
        by_base = read(policy, own.wrongs, settings, SEED + 2)
    ita = stops_if_right(of_right, of_wrong[: len(of_right)])["ita"]
    return {**swap_test(of_wrong, by_base), "ita_own_drafts": ita}


def _stops(policy: Policy, settings: LoopSettings, drafts: OwnDrafts) -> list[float]:
    of_wrong = read(policy, drafts.wrongs, settings, SEED + 2)
    return stops_if_right(read(policy, drafts.rights, settings, SEED + 6), of_wrong)["ita"]


def synthetic_nodes(count: int, seed: int, *, tags: Sequence[str] | None = None) -> list[tuple[Prompt, torch.Tensor]]:
    """Wrong images for prompts of the training split, drawn by the world, for `tree.synthetic_fraction`."""
    rng = np.random.default_rng(seed)
    prompts = sample_prompts(count, split="train", tags=tags, seed=rng)
    scenes = [wrong_scene(sample_scene(p, rng), p, rng, rough_share=0.25) for p in prompts]
    images = roughen_pixels(render(scenes), rng)
    return [(p, torch.from_numpy(i)) for p, i in zip(prompts, images, strict=True)]


__all__ = ["ROUNDS", "SEED", "ShapesBench", "judge", "synthetic_nodes"]
