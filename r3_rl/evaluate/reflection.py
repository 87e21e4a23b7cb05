"""Does the loop help, and does reflection survive training?

Gain on the policy's own drafts misleads: a better policy keeps only its hard errors. So reflection is also judged on a
fixed set of wrong drafts, and by the swap test: the trained policy's wrong drafts are read by its own critic and by
the base's. Shapes: n prompts or images; every list is in the order of its set, so before and after can be paired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from r3_rl.observe.statistics import Interval, paired_difference, share
from r3_rl.policy.base import Policy
from r3_rl.rollout.episode import LoopSettings, make_critiques, make_refinements, round_seed, run_loop
from r3_rl.types import Critique, Prompt, Trajectory, Verdict

Judge = Callable[[Sequence[torch.Tensor], Sequence[Prompt]], list[Verdict]]
"""Images float [3, H, W] and their prompts -> verdicts whose total is 1 for right and below 1 for wrong."""

CHUNK = 128
"""Rows of one pass: enough to keep the processor busy, few enough for its cache and memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FixedDrafts:
    """Drafts that stay the same before and after training."""

    prompts: tuple[Prompt, ...]
    images: tuple[torch.Tensor, ...]

    def __add__(self, other: FixedDrafts) -> FixedDrafts:
        return FixedDrafts(prompts=self.prompts + other.prompts, images=self.images + other.images)


@dataclass(kw_only=True, eq=False)
class Measured:
    """One phase: right (1) or wrong (0) for every item of every measurement."""

    values: dict[str, list[float]] = field(default_factory=dict)
    trajectories: list[Trajectory] = field(default_factory=list)

    def intervals(self) -> dict[str, Interval]:
        """Shares with 95 % intervals."""
        return {name: share(values) for name, values in self.values.items() if values}


def right(verdict: Verdict | None) -> float:
    """1 for a perfect image."""
    return float(verdict is not None and verdict.total is not None and verdict.total >= 1 - 1e-6)


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
    """Draft and up to `rounds` rounds on held-out prompts: `draft`, `round_1`.., `final`, each by tag as well."""
    out = Measured()
    for start in range(0, len(prompts), CHUNK):
        part = prompts[start : start + CHUNK]
        walked = run_loop(policy, part, settings, rounds=rounds, seed=seed + start)
        out.trajectories += judged(walked, judge)
    tags = [str(t.prompt.columns.get("tag", "all")) for t in out.trajectories]
    for number in range(rounds + 1):
        name = "draft" if number == 0 else "final" if number == rounds else f"round_{number}"
        hits = [right(t.rounds[min(number, len(t.rounds) - 1)].verdict) for t in out.trajectories]
        out.values[name] = hits
        if name in ("draft", "final"):
            for tag in sorted(set(tags)):
                out.values[f"{name}/{tag}"] = [h for h, g in zip(hits, tags, strict=True) if g == tag]
            if harder:
                out.values[f"harder_{name}"] = [h for h, g in zip(hits, tags, strict=True) if g in harder]
    return out


def judged(walked: Sequence[Trajectory], judge: Judge) -> list[Trajectory]:
    """The trajectories with a verdict for every image."""
    images = [r.image.image for t in walked for r in t.rounds]
    asked = [t.prompt for t in walked for _ in t.rounds]
    verdicts = iter(judge(images, asked))
    return [replace(t, rounds=tuple(replace(r, verdict=next(verdicts)) for r in t.rounds)) for t in walked]


def measure_fixed(
    policy: Policy, wrong: FixedDrafts, rights: FixedDrafts, settings: LoopSettings, judge: Judge, *, seed: int
) -> Measured:
    """Fixed wrong drafts: share edited and share right after one refinement. Fixed right drafts: share left alone."""
    out = Measured()
    edited: list[float] = []
    repaired: list[float] = []
    for start in range(0, len(wrong.images), CHUNK):
        images, prompts = wrong.images[start : start + CHUNK], wrong.prompts[start : start + CHUNK]
        critiques = make_critiques(policy, images, prompts, settings, seed + start)
        drawings = [settings.refine.drawing] * len(images)
        drawn = make_refinements(policy, critiques, images, prompts, settings, drawings, seed + start)
        edited += [float(image is not None) for image in drawn]
        kept = [i for i, image in enumerate(drawn) if image is not None]
        verdicts = judge([d.image for d in drawn if d is not None], [prompts[i] for i in kept]) if kept else []
        hits = dict(zip(kept, verdicts, strict=True))
        repaired += [right(hits.get(i)) for i in range(len(images))]
    out.values["wrong_drafts_edited"] = edited
    out.values["wrong_drafts_repaired"] = repaired
    if rights.images:
        out.values["right_drafts_kept"] = [float(c.stop) for c in read(policy, rights, settings, seed)]
    return out


def read(policy: Policy, drafts: FixedDrafts, settings: LoopSettings, seed: int) -> list[Critique]:
    """The policy's critiques of given images."""
    out: list[Critique] = []
    for start in range(0, len(drafts.images), CHUNK):
        out += make_critiques(
            policy, drafts.images[start : start + CHUNK], drafts.prompts[start : start + CHUNK], settings, seed + start
        )
    return out


def swap_test(policy: Policy, wrong: FixedDrafts, settings: LoopSettings, *, seed: int) -> Measured:
    """The policy's own wrong drafts, read by its own critic and, with the adapter off, by the base's."""
    out = Measured()
    if not wrong.images:
        return out
    own = read(policy, wrong, settings, seed)
    with policy.reference():
        base = read(policy, wrong, settings, seed)
    out.values["swap_own_critic_edits"] = [float(bool(c.instruction)) for c in own]
    out.values["swap_base_critic_edits"] = [float(bool(c.instruction)) for c in base]
    return out


def own_wrong_drafts(
    policy: Policy,
    trajectories: Sequence[Trajectory],
    settings: LoopSettings,
    judge: Judge,
    *,
    count: int,
    seed: int,
    most_passes: int = 4,
) -> FixedDrafts:
    """Wrong drafts of the policy: those of the trajectories, and where they are fewer than `count`, those of further
    drafts for the same prompts. After `most_passes` over the prompts it is as many as were found: a policy may be good.
    """
    found = own_drafts(trajectories, wanted=0.0, limit=count)
    prompts = [t.prompt for t in trajectories]
    for number in range(1, most_passes + 1):
        for start in range(0, len(prompts), CHUNK):
            missing = count - len(found.images)
            if missing <= 0:
                return found
            part = prompts[start : start + CHUNK]
            walked = run_loop(policy, part, settings, rounds=0, seed=round_seed(seed, number) + start)
            found = found + own_drafts(judged(walked, judge), wanted=0.0, limit=missing)
    return found


def own_drafts(trajectories: Sequence[Trajectory], *, wanted: float, limit: int | None = None) -> FixedDrafts:
    """The drafts of trajectories that are right (`wanted` 1) or wrong (0)."""
    chosen = [t for t in trajectories if right(t.rounds[0].verdict) == wanted][:limit]
    return FixedDrafts(prompts=tuple(t.prompt for t in chosen), images=tuple(t.rounds[0].image.image for t in chosen))


def differences(before: Mapping[str, list[float]], after: Mapping[str, list[float]]) -> dict[str, Interval]:
    """After - before with 95 % intervals, for what was measured on the same items."""
    return {
        name: paired_difference(values, after[name])
        for name, values in before.items()
        if values and len(after.get(name, [])) == len(values) and not name.startswith("swap_")
    }
