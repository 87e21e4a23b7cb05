"""Prompts drawn with the loop: what every edit budget gives, and what the same number of drafts would have given.

After r rounds a model has drawn at most r + 1 images, so it is compared with the best of r + 1 drafts: the one that its
own critic picks (the first that it would stop at, else the last), and the one that the judge would pick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from r3_rl.benches.base import BATCH, GREEDY, SAMPLED, Figure, Job, Sample, ScoredImage
from r3_rl.evaluate.base import SEED
from r3_rl.evaluate.gallery import Verdicts
from r3_rl.evaluate.reflection import FixedDrafts, first_critique, read
from r3_rl.observe.strip import RIGHT_SCORE
from r3_rl.observe.trajectories import SeenRound, see, to_pixels
from r3_rl.rollout.engine import run_loop
from r3_rl.types import Prompt, Trajectory

OF_A_SEED, REDRAWN, READ = 10_000_019, 1_000_003, 5_000_011
"""From the seed of the items to that of an evaluation's seed, of further drafts, of what is said about these."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawingBench:
    """Prompts, each drawn and refined."""

    name: str
    title: str
    prompts: Sequence[Prompt]
    verdicts: Verdicts
    """Trajectories -> the same ones with a verdict for every image."""
    rounds: Sequence[int]
    """Edit budgets that are reported, in ascending order; the last one is run."""
    copies: int = 1
    """Images of a prompt with one seed."""
    graded: bool = False
    """Whether scores lie between wrong and right; then their means are reported too."""
    headline: bool = True
    """Whether its first and last budget are figures to remember."""
    redraw: bool = True
    """Whether further drafts are drawn to compare with."""
    facts: Mapping[str, str] = field(default_factory=dict)
    decodings: Sequence[str] = (GREEDY, SAMPLED)
    batch: int = BATCH
    draws: bool = True
    further: Sequence[Figure] = ()
    """Rows of the table above the common ones, such as an official aggregate: formulas of `draft/TAG` and `final/TAG`,
    which are scores if they are graded, else right or wrong."""

    @property
    def items(self) -> Sequence[str]:
        """One for each image of each prompt."""
        return [prompt.text for prompt in self.prompts for _ in range(self.copies)]

    def measure(self, job: Job, batch: slice) -> list[Sample]:
        """Run the loop on a batch, then draw as many further drafts as it had rounds."""
        places = range(batch.start, batch.stop)
        prompts = [self.prompts[place // self.copies] for place in places]
        seed, rounds = SEED + OF_A_SEED * job.seed + batch.start, self.rounds[-1]
        walked = self.verdicts(run_loop(job.policy, prompts, job.loop, rounds=rounds, seed=seed))
        drafts = self._further_drafts(job, walked, seed) if self.redraw else [[t] for t in walked]
        return [
            self._sample(place, trajectory, these)
            for place, trajectory, these in zip(places, walked, drafts, strict=True)
        ]

    def _further_drafts(self, job: Job, walked: Sequence[Trajectory], seed: int) -> list[list[Trajectory]]:
        """The loop's draft and as many again as the loop has rounds, each with what is said about it."""
        drafts, rounds = [[trajectory] for trajectory in walked], self.rounds[-1]
        wanted = [(number, place) for number in range(1, rounds + 1) for place in range(len(walked))]
        for start in range(0, len(wanted), self.batch):
            these, again = wanted[start : start + self.batch], seed + REDRAWN + start
            prompts = [walked[place].prompt for _, place in these]
            drawn = self.verdicts(run_loop(job.policy, prompts, job.loop, rounds=0, seed=again))
            # the last draft is taken, whatever is said about it
            asked = [t for t, (number, _) in zip(drawn, these, strict=True) if number < rounds]
            said = iter(read(job.policy, FixedDrafts.of(asked), job.loop, again + READ))
            for trajectory, (number, place) in zip(drawn, these, strict=True):
                drafts[place].append(replace(trajectory, last_critique=next(said) if number < rounds else None))
        return drafts

    def _sample(self, place: int, trajectory: Trajectory, drafts: Sequence[Trajectory]) -> Sample:
        prompt, seen = trajectory.prompt, see(trajectory)
        images = {f"round_{n}": _scored(this) for n, this in enumerate(seen.rounds)}
        images |= {
            f"draft_{n}": ScoredImage(pixels=to_pixels(t.rounds[0].image.image), score=_total(t, 0))
            for n, t in enumerate(drafts)
            if n
        }
        return Sample(
            item=f"{place // self.copies:05d} {prompt.text}",
            copy=place % self.copies,
            values=self._values(trajectory, drafts),
            shown={
                "prompt": seen.prompt,
                "tag": seen.tag,
                "rounds": [_shown(this) for this in seen.rounds],
                "drafts": [{"score": _total(t, 0), "stop": _stops(t)} for t in drafts[1:]],
            },
            images=images,
        )

    def _values(self, trajectory: Trajectory, drafts: Sequence[Trajectory]) -> dict[str, float]:
        scores = [_total(trajectory, number) for number in self.rounds]
        others = [_total(t, 0) for t in drafts[1:]]
        if any(score is None for score in [*scores, *others, _total(trajectory, 0)]):
            return {"unscored": 1.0}
        values = {"unscored": 0.0, **_loop_values(trajectory, self.rounds)}
        if self.redraw:
            values |= _against_drafts(values, drafts, self.rounds)
        tag = str(trajectory.prompt.columns.get("tag", ""))
        ends = {name: values[name] for name in ("draft", "final")}
        if self.graded:
            values |= {f"score_{n}": float(s) for n, s in zip(self.rounds, scores, strict=True) if s is not None}
            ends = {"draft": float(_total(trajectory, 0) or 0.0), "final": float(scores[-1] or 0.0)}
        return values | ({f"{name}/{tag}": end for name, end in ends.items()} if tag else {})

    def figures(self, names: Sequence[str]) -> list[Figure]:
        """The rows of the table; those without values are left out by whoever writes it."""
        from r3_rl.benches.drawing_figures import drawing_figures

        return [*self.further, *drawing_figures(names, self.rounds, graded=self.graded, headline=self.headline)]


def _loop_values(trajectory: Trajectory, rounds: Sequence[int]) -> dict[str, float]:
    """What the loop gives at every budget."""
    draft = _right(_total(trajectory, 0))
    first = first_critique(trajectory)
    values = {"draft": draft}
    if first is not None:  # what it says about its own first image: does it stop if and only if that is right?
        values["ita_own/right" if draft else "ita_own/wrong"] = float(first.stop == bool(draft))
    for number in rounds:
        after = _right(_total(trajectory, number))
        values[f"images_{number}"] = float(min(number, len(trajectory.rounds) - 1) + 1)
        if number:
            values[f"round_{number}"] = after
            values[f"gain_{number}"] = after - draft
            values[f"damage_{number}" if draft else f"repair_{number}"] = 1 - after if draft else after
    return {**values, "final": _right(_total(trajectory, rounds[-1]))}


def _against_drafts(
    values: Mapping[str, float], drafts: Sequence[Trajectory], rounds: Sequence[int]
) -> dict[str, float]:
    """What as many drafts as images would have given, and the loop less that."""
    found: dict[str, float] = {}
    rights = [_right(_total(t, 0)) for t in drafts]
    stops = [_stops(t) for t in drafts]
    for number in rounds:
        if number:
            picked = next((place for place in range(number) if stops[place]), number)
            found[f"best_own_critic_{number}"] = rights[picked]
            found[f"best_oracle_{number}"] = max(rights[: number + 1])
            found[f"looking_{number}"] = values[f"round_{number}"] - rights[picked]
    return found


def _total(trajectory: Trajectory, number: int) -> float | None:
    """Score after so many rounds, or after the last one that there was; in [0, 1] of what is the best."""
    verdict = trajectory.rounds[min(number, len(trajectory.rounds) - 1)].verdict
    return None if verdict is None or verdict.total is None else verdict.total / (verdict.best or 1.0)


def _right(score: float | None) -> float:
    return float(score is not None and score >= RIGHT_SCORE)


def _stops(trajectory: Trajectory) -> bool:
    critique = first_critique(trajectory)
    return critique is not None and critique.stop


def _scored(this: SeenRound) -> ScoredImage:
    assert this.pixels is not None, "a trajectory in memory has its images"
    return ScoredImage(pixels=this.pixels, score=this.score)


def _shown(this: SeenRound) -> dict[str, Any]:
    """A round as JSON, in the words of `trajectories.jsonl`."""
    row: dict[str, Any] = {"score": this.score, "scores": dict(this.scores), "words": this.words, "stop": this.stop}
    if this.plan:
        row["plan"] = this.plan
    if this.critique is not None:
        row |= {"critique": this.critique, "instruction": this.instruction, "well_formed": this.well_formed}
    return row
