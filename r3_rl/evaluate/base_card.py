"""The model card of a pretrained model of a world: how it was made, what is wrong on purpose, what it can do."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from r3_rl.observe.evaluation import Evaluation, Row, grouped_rows
from r3_rl.observe.progress import duration
from r3_rl.observe.statistics import Interval
from r3_rl.recipe import Recipe
from r3_rl.recipe.pretraining import PretrainSection

ERRORS = {
    "plan_noise": "of the text-to-image plans contradict their prompt",
    "image_noise": "of the images depart from their plan",
    "edit_noise": "of the edits show something that nobody asked for",
    "critique_noise": "of the critiques of wrong images help nothing",
}

MEASURED = """Measured on held-out prompts, drafts and questions, with 95 % intervals. Greedy: every text is made of
    the likeliest words; sampled: as the recipe says. What greedy texts get right is not for reinforcement learning to
    win."""


def base_card(
    recipe: Recipe,
    measured: Evaluation,
    *,
    architecture: str,
    name: str,
    num_parameters: int,
    tower_seconds: float,
    sketch_seconds: float = 0.0,
    leg_seconds: Sequence[float],
    machine: Mapping[str, Any],
) -> str:
    """Return the card in Markdown.

    Args:
        recipe: with a section `pretrain`.
        measured: of the model, as the phase `before`.
        architecture: of the model that was made, as its backbone describes it.
        name: of the recipe.
        num_parameters: of the model that was made.
        tower_seconds: what the understanding tower took by itself, before the legs, in seconds.
        sketch_seconds: what plans and edits before images took, in seconds.
        leg_seconds: what each leg took, in seconds.
        machine: `observe.environment.environment`'s description.
    """
    settings = recipe.pretrain
    assert settings is not None
    legs = list(zip(settings.legs(), leg_seconds, strict=True))
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    stages = [*_first(settings, tower_seconds, sketch_seconds), *(_leg(i, *leg) for i, leg in enumerate(legs, 1))]
    what = f"""{architecture}, {num_parameters:,} parameters, bfloat16, pretrained from random weights on the synthetic
        world `{recipe.data.kind}`. Weights: Apache-2.0. The JSON files beside the weights hold the exact sizes."""
    how = f"""**How it was made.** `r3 pretrain {name}`, seed {recipe.training.seed},
        {duration(tower_seconds + sketch_seconds + sum(leg_seconds))} on {threads} of
        {machine.get("processor") or "a CPU"}, {machine.get("accelerator", "no GPU")}:"""
    return f"""# A policy of the world `{recipe.data.kind}`, pretrained with r3-rl

{_paragraph(what)}

{_paragraph(how)}

| leg | steps | examples a step | time |
|---|---|---|---|
{chr(10).join(stages)}

{_paragraph(_headroom([leg for leg, _ in legs]))}

{_paragraph(MEASURED)}

| | greedy | sampled | n |
|---|---|---|---|
{chr(10).join(_rows(measured))}
"""


def _headroom(legs: Sequence[PretrainSection]) -> str:
    """What is wrong on purpose, in any leg."""
    if not any(getattr(leg, name) for leg in legs for name in ERRORS):
        right = """**No target was wrong on purpose**, in any leg: what the base gets wrong, it has not learned."""
        return f"{right} {_seldom(legs[0])}"
    last = legs[-1]
    errors = [f"{100 * share:.0f} % {words}" for name, words in ERRORS.items() if (share := getattr(last, name))]
    if not errors:
        return """**Deliberate headroom.** Earlier legs taught errors on purpose; the last one does not."""
    return f"""**Deliberate headroom.** So that reinforcement learning has something to correct, the last leg
        teaches errors: {"; ".join(errors)}. A wrong plan is up to {last.plan_errors} edits away from a right
        one. What the base can do is measured with these errors in it:
        less than the same compute could reach."""


def _seldom(leg: PretrainSection) -> str:
    """The kinds of prompts that were seldom drawn, if any."""
    kinds = [f"{kind.replace('_', ' ')} {weight:g}" for kind, weight in leg.draw_weights.items() if weight < 1]
    if not kinds:
        return ""
    return f"""Some kinds of prompts were seldom drawn or planned (weights, where others have 1: {", ".join(kinds)});
        edits, critiques and questions show scenes of all kinds."""


def _rows(measured: Evaluation) -> Iterator[str]:
    """Greedy and sampled figures next to each other, group by group."""
    for group, rows in grouped_rows(measured).items():
        yield f"| **{group}** | | | |"
        for row in rows:
            greedy = _cell(row, row.greedy.before) if row.decoding != "sampled" else "–"
            sampled = _cell(row, row.sampled.before) if row.decoding != "once" else "the same"
            label = f"{row.label} ({row.hint})" if row.hint else row.label
            yield f"| {label} | {greedy} | {sampled} | {' / '.join(map(str, row.counts))} |"


def _cell(row: Row, i: Interval | None) -> str:
    if i is None:
        return "not measured"
    if row.is_share:
        return f"{100 * i.mean:.1f} % ({100 * i.low:.1f} - {100 * i.high:.1f})"
    return f"{i.mean:.3f} ({i.low:.3f} - {i.high:.3f})"


def _paragraph(words: str) -> str:
    return textwrap.fill(" ".join(words.split()), width=118, break_long_words=False, break_on_hyphens=False)


def _first(settings: PretrainSection, tower_s: float, sketch_s: float) -> Iterator[str]:
    """What is taught before all legs, if anything is."""
    if settings.tower_steps:
        mix = f"{settings.tower_images} (images: what is in each square, to the understanding tower alone)"
        yield f"| tower | {settings.tower_steps} | {mix} | {duration(tower_s)} |"
    if settings.sketch_steps:
        mix = f"{settings.sketch_plans} plans, {settings.sketch_edits} edits (and noise: what each square is to hold)"
        yield f"| sketch | {settings.sketch_steps} | {mix} | {duration(sketch_s)} |"


def _leg(number: int, leg: PretrainSection, seconds: float) -> str:
    mix = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in leg.batch.model_dump().items() if count)
    return f"| {number} | {leg.steps} | {sum(leg.batch.model_dump().values())} ({mix}) | {duration(seconds)} |"
