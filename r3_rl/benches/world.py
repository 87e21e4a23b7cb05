"""A world's own benches: its prompts drawn with the loop, and what a model says about images that the world drew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from r3_rl.benches.base import BATCH, GREEDY, SAMPLED, Figure, ItemBench, Job, Request, Sample
from r3_rl.benches.drawing import OF_A_SEED, DrawingBench
from r3_rl.benches.questions import READS, OwnImagesBench, QuestionsBench
from r3_rl.evaluate.base import SEED
from r3_rl.evaluate.fixed_sets import PAIRS, fixed_drafts
from r3_rl.evaluate.gallery import by_judge
from r3_rl.evaluate.painting import measure_edits, measure_true_plans
from r3_rl.evaluate.reading import exact_listings
from r3_rl.evaluate.reflection import read
from r3_rl.types import Prompt
from r3_rl.worlds.base import Edited, World, chosen_tags
from r3_rl.worlds.sets import Drawn, pairs, verdicts

NUM_PROMPTS, NUM_OTHERS, NUM_PAIRS, NUM_QUESTIONS, NUM_OWN, NUM_PAINTED = 300, 120, 120, 300, 150, 200
"""Items of each set, if there is no limit: those of a run that is measured before and after."""


def world_benches(request: Request, world: World[Any]) -> list[ItemBench]:
    """Return what is measured in a world: drawing, kinds that were not trained, pairs, questions, the painter.

    The items are those that runs are measured on before and after training.
    """
    tags = chosen_tags(world, request.tags)
    left_out = [tag for tag in world.tags if tag not in tags]

    def count(number: int) -> int:
        return number if request.limit is None else min(number, request.limit)

    def prompts(number: int, kinds: Sequence[str], seed: int) -> list[Prompt]:
        return world.prompts(count(number), split="held_out", tags=kinds, seed=SEED + seed)

    judged = by_judge(partial(verdicts, world))
    facts = {"prompts": "held-out split", "judge": "exact inspection of the pixels"}
    drawing = DrawingBench(
        name=f"{world.name}.drawing",
        title=f"{world.name}: held-out prompts",
        prompts=prompts(NUM_PROMPTS, tags, 0),
        verdicts=judged,
        rounds=request.rounds,
        facts={**facts, "kinds": ", ".join(tags)},
    )
    found: list[ItemBench] = [drawing]
    if left_out:
        name, title = f"{world.name}.others", f"{world.name}: kinds that were not trained"
        others = prompts(NUM_OTHERS, left_out, 13)
        facts = {**facts, "kinds": ", ".join(left_out)}
        found.append(
            replace(drawing, name=name, title=title, prompts=others, redraw=False, headline=False, facts=facts)
        )
    shown = pairs(world, count(NUM_PAIRS), tags=tags, seed=SEED + PAIRS)
    found.append(PairsBench(world=world, shown=[drawn for pair in shown for drawn in (pair.right, pair.near_miss)]))
    asked = world.questions(count(NUM_QUESTIONS), seed=SEED + 4) if world.question_kinds else []
    if asked:
        found += [
            QuestionsBench(world=world, asked=asked),
            OwnImagesBench(world=world, prompts=prompts(NUM_OWN, tags, 0)),
        ]
    edits = world.edits(count(NUM_PAINTED), seed=SEED + 5)
    return [*found, PainterBench(world=world, prompts=prompts(NUM_PAINTED, tags, 12), edits=edits)]


@dataclass(frozen=True, kw_only=True, eq=False)
class PairsBench:
    """ITA on a fixed pool: right images of prompts and near misses one edit away, alternating. Does the critique stop
    if and only if the image is right, and does it list what is there?"""

    world: World[Any]
    shown: Sequence[Drawn]
    decodings: Sequence[str] = (GREEDY, SAMPLED)
    batch: int = BATCH
    draws: bool = False

    @property
    def name(self) -> str:
        """Of the world."""
        return f"{self.world.name}.pairs"

    @property
    def title(self) -> str:
        """As people say it."""
        return f"{self.world.name}: right images and near misses (ITA)"

    @property
    def items(self) -> Sequence[str]:
        """Prompts, each twice."""
        return [drawn.prompt.text for drawn in self.shown]

    @property
    def facts(self) -> Mapping[str, str]:
        """How it is asked."""
        return {
            "pool": "fixed, drawn by the world: as many right images as near misses",
            "prompt": "the loop's critique",
        }

    def measure(self, job: Job, batch: slice) -> list[Sample]:
        """Read a batch of images as the loop does."""
        drawn = self.shown[batch]
        said = read(job.policy, fixed_drafts(drawn), job.loop, SEED + OF_A_SEED * job.seed + 8 + batch.start)
        listed = exact_listings(self.world, said, [this.scene for this in drawn])
        samples = []
        for place, this, critique, exact in zip(range(batch.start, batch.stop), drawn, said, listed, strict=True):
            right = place % 2 == 0
            hit = float(critique.stop == right)
            shown = {"prompt": this.prompt.text, "right": right, "critique": critique.segment.text}
            values = {"ita": hit, "ita/right" if right else "ita/wrong": hit, "listing": exact}
            item = f"{place // 2:05d} {this.prompt.text}"
            samples.append(Sample(item=item, copy=place % 2, values=values, shown=shown))
        return samples

    def figures(self, names: Sequence[str]) -> list[Figure]:
        """ITA, its two sides, and the listing."""
        return [
            Figure(
                name="ita", label="ITA, fixed images", hint="half right, half near misses", group=READS, headline=True
            ),
            Figure(name="ita/right", label="… right images", hint="stops", group=READS),
            Figure(name="ita/wrong", label="… near misses", hint="does not stop", group=READS),
            Figure(name="listing", label="Exact listing", hint="the critique names what is there", group=READS),
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class PainterBench:
    """True plans and true edits given as text: what the painter alone can do. No text is written, so that there is one
    decoding."""

    world: World[Any]
    prompts: Sequence[Prompt]
    edits: Sequence[Edited]
    decodings: Sequence[str] = (GREEDY,)
    batch: int = BATCH
    draws: bool = True

    @property
    def name(self) -> str:
        """Of the world."""
        return f"{self.world.name}.painter"

    @property
    def title(self) -> str:
        """As people say it."""
        return f"{self.world.name}: true plans and edits, given as text"

    @property
    def items(self) -> Sequence[str]:
        """Plans, then edits."""
        return [*(prompt.text for prompt in self.prompts), *(edit.instruction for edit in self.edits)]

    @property
    def facts(self) -> Mapping[str, str]:
        """What is given."""
        return {"texts": "given, none is written"}

    def measure(self, job: Job, batch: slice) -> list[Sample]:
        """Draw a batch, which may hold plans and edits."""
        seed, count = SEED + OF_A_SEED * job.seed + 11, len(self.prompts)
        plans, edits = self.prompts[batch], self.edits[max(batch.start - count, 0) : max(batch.stop - count, 0)]
        found = measure_true_plans(self.world, job.policy, plans, job.loop, seed=seed + 2 * batch.start)
        drawn = found.get("true_plan_drawn", [])
        edited = measure_edits(self.world, job.policy, edits, job.loop, seed=seed + 2 * batch.start + 1)
        texts = [*(prompt.text for prompt in plans), *(edit.instruction for edit in edits)]
        columns = {"true_plan": drawn, "held_out": found.get("held_out_true_plan", [])}
        of_plans = [{name: hits[i] for name, hits in columns.items() if hits} for i in range(len(drawn))]
        values = [*of_plans, *({"true_edit": hit} for hit in edited)]
        if len(values) < len(texts):  # plans are off, or the model does not edit
            values = [{} for _ in plans[len(drawn) :]] + values + [{} for _ in edits[len(edited) :]]
        return [
            Sample(item=f"{place:05d} {text}", values=these, shown={"text": text})
            for place, text, these in zip(range(batch.start, batch.stop), texts, values, strict=True)
        ]

    def figures(self, names: Sequence[str]) -> list[Figure]:
        """Plans and edits."""
        group = "Painter"
        known = [
            Figure(name="true_plan", label="True plan drawn right", group=group),
            Figure(name="held_out", label="… to the held-out inspector", group=group),
            Figure(name="true_edit", label="True edit carried out", group=group),
        ]
        return [figure for figure in known if figure.name in names]
