"""Does the loop help, and does reflection survive training?

Gain on the policy's own drafts misleads: a better policy keeps only its hard errors. So reflection is also judged on a
fixed set of wrong drafts, and by the swap test: the trained policy's wrong drafts are read by its own critic and by
the base's. Shapes: n prompts or images; every list is in the order of its set, so before and after can be paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from r3_rl.evaluate.measured import Measured, Values, chunks, right
from r3_rl.nodes import Node, given_image
from r3_rl.policy.base import Policy
from r3_rl.rollout.engine import Engine, run_loop
from r3_rl.stages.settings import LoopSettings
from r3_rl.types import Critique, Prompt, Trajectory, Verdict

Judge = Callable[[Sequence[torch.Tensor], Sequence[Prompt]], list[Verdict]]
"""Images float [3, H, W] and their prompts -> verdicts whose total is 1 for right and below 1 for wrong."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FixedDrafts:
    """Images with their prompts."""

    prompts: tuple[Prompt, ...] = ()
    images: tuple[torch.Tensor, ...] = ()

    def __add__(self, other: FixedDrafts) -> FixedDrafts:
        return FixedDrafts(prompts=self.prompts + other.prompts, images=self.images + other.images)

    def first(self, count: int) -> FixedDrafts:
        """At most `count` of them."""
        return FixedDrafts(prompts=self.prompts[:count], images=self.images[:count])

    def spread(self, count: int) -> FixedDrafts:
        """At most `count` of them, evenly from first to last: sets hold one kind of draft after the other."""
        if count >= len(self.images):
            return self
        places = [i * len(self.images) // count for i in range(count)]
        return FixedDrafts(prompts=tuple(self.prompts[i] for i in places), images=tuple(self.images[i] for i in places))

    def nodes(self, part: slice) -> list[Node]:
        """Some of them, to look at."""
        return [given_image(p, i) for p, i in zip(self.prompts[part], self.images[part], strict=True)]

    @classmethod
    def of(cls, trajectories: Iterable[Trajectory]) -> FixedDrafts:
        """The drafts of trajectories."""
        chosen = list(trajectories)
        return cls(prompts=tuple(t.prompt for t in chosen), images=tuple(t.rounds[0].image.image for t in chosen))


@dataclass(frozen=True, kw_only=True, eq=False)
class Refined:
    """What the policy made of a given image in one round."""

    critique: Critique
    image: torch.Tensor | None
    """float32 [3, H, W] in [0, 1]; None if the critique stops or is malformed."""


def measure_loop(
    policy: Policy,
    prompts: Sequence[Prompt],
    settings: LoopSettings,
    judge: Judge,
    *,
    rounds: int,
    seed: int,
    harder: Sequence[str] = (),
) -> Measured:
    """Draft and up to `rounds` rounds on held-out prompts: `draft`, `round_1`.., `final`, the first and the last by tag
    as well; and what the rounds change (`repair_and_damage`)."""
    out = Measured()
    for part in chunks(len(prompts)):
        walked = run_loop(policy, prompts[part], settings, rounds=rounds, seed=seed + part.start)
        out.trajectories += judged(walked, judge)
    tags = [str(t.prompt.columns.get("tag", "all")) for t in out.trajectories]
    for number in range(rounds + 1):
        name = "draft" if number == 0 else "final" if number == rounds else f"round_{number}"
        hits = _right_after(out.trajectories, number)
        out.values[name] = hits
        if name in ("draft", "final"):
            for tag in sorted(set(tags)):
                out.values[f"{name}/{tag}"] = [h for h, g in zip(hits, tags, strict=True) if g == tag]
            if harder:
                out.values[f"harder_{name}"] = [h for h, g in zip(hits, tags, strict=True) if g in harder]
    out.add(repair_and_damage(out.trajectories, rounds))
    return out


def _right_after(trajectories: Sequence[Trajectory], number: int) -> list[float]:
    return [right(t.rounds[min(number, len(t.rounds) - 1)].verdict) for t in trajectories]


def repair_and_damage(trajectories: Sequence[Trajectory], rounds: int) -> Values:
    """By round: the share of wrong drafts that are right after it, and of right drafts that are wrong after it."""
    values: Values = {}
    drafts = _right_after(trajectories, 0)
    for number in range(1, rounds + 1):
        after = list(zip(drafts, _right_after(trajectories, number), strict=True))
        values[f"repair_round_{number}"] = [now for draft, now in after if not draft]
        values[f"damage_round_{number}"] = [1 - now for draft, now in after if draft]
    return values


def judged(walked: Sequence[Trajectory], judge: Judge) -> list[Trajectory]:
    """The trajectories with a verdict for every image."""
    images = [r.image.image for t in walked for r in t.rounds]
    asked = [t.prompt for t in walked for _ in t.rounds]
    verdicts = iter(judge(images, asked))
    return [replace(t, rounds=tuple(replace(r, verdict=next(verdicts)) for r in t.rounds)) for t in walked]


def first_critique(trajectory: Trajectory) -> Critique | None:
    """What the loop said about the draft; None if it had no rounds."""
    return trajectory.rounds[1].critique if len(trajectory.rounds) > 1 else trajectory.last_critique


def read(policy: Policy, drafts: FixedDrafts, settings: LoopSettings, seed: int) -> list[Critique]:
    """The policy's critiques of given images."""
    engine, out = Engine(policy=policy, settings=settings), []
    for part in chunks(len(drafts.images)):
        read = engine.critiques(drafts.nodes(part), seed=seed + part.start)
        out += [node.critique for node in read if node.critique is not None]
    return out


def refine_once(policy: Policy, drafts: FixedDrafts, settings: LoopSettings, *, seed: int) -> list[Refined]:
    """One round on given images: a critique and, if it asks for an edit, a refinement."""
    engine, out = Engine(policy=policy, settings=settings), []
    for part in chunks(len(drafts.images)):
        critiques = engine.critiques(drafts.nodes(part), seed=seed + part.start)
        drawn = engine.refinements(critiques, seed=seed + part.start)
        out += [
            Refined(critique=node.critique, image=image.image if image is not None else None)
            for node, image in zip(critiques, drawn, strict=True)
            if node.critique is not None
        ]
    return out


def edited_and_repaired(refined: Sequence[Refined], prompts: Sequence[Prompt], judge: Judge) -> Values:
    """Of wrong drafts, `wrong_drafts_edited` and `wrong_drafts_repaired`: right after one refinement."""
    kept = [(r.image, prompt) for r, prompt in zip(refined, prompts, strict=True) if r.image is not None]
    verdicts = iter(judge([image for image, _ in kept], [prompt for _, prompt in kept]) if kept else [])
    return {
        "wrong_drafts_edited": [float(r.image is not None) for r in refined],
        "wrong_drafts_repaired": [right(next(verdicts)) if r.image is not None else 0.0 for r in refined],
    }


def stops_if_right(of_right: Sequence[Critique], of_wrong: Sequence[Critique]) -> Values:
    """ITA: 1 if a critique stops and the image is right, or does not stop and it is wrong; right images first.

    A malformed critique does not stop. The share is balanced only if there are as many of both.
    """
    sides = {"right": [float(c.stop) for c in of_right], "wrong": [float(not c.stop) for c in of_wrong]}
    return {"ita": sides["right"] + sides["wrong"], **{f"ita/{side}": hits for side, hits in sides.items()}}


def swap_test(own: Sequence[Critique], base: Sequence[Critique]) -> Values:
    """The policy's own wrong drafts, as its own critic reads them and, with the adapter off, the base's."""
    return {
        "swap_own_critic_edits": [float(bool(c.instruction)) for c in own],
        "swap_base_critic_edits": [float(bool(c.instruction)) for c in base],
    }


def own_drafts(trajectories: Sequence[Trajectory], *, wanted: float, limit: int | None = None) -> FixedDrafts:
    """The drafts of trajectories that are right (`wanted` 1) or wrong (0)."""
    return FixedDrafts.of([t for t in trajectories if right(t.rounds[0].verdict) == wanted][:limit])
