"""The model card of a pretrained embedded model: how it was made, what is wrong on purpose, what it can do."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

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


def base_card(
    recipe: Recipe,
    measured: Mapping[str, Interval],
    *,
    num_parameters: int,
    leg_seconds: Sequence[float],
    machine: Mapping[str, Any],
) -> str:
    """The card in Markdown.

    Args:
        recipe: with a section `pretrain`.
        measured: share right of each measurement, with its 95 % interval and count.
        num_parameters: of the model that was made.
        leg_seconds: what each leg took, in seconds.
        machine: `observe.environment.environment`'s description.
    """
    settings = recipe.pretrain
    assert settings is not None
    legs = list(zip(settings.legs(), leg_seconds, strict=True))
    size = settings.model
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    last = legs[-1][0]
    errors = [f"{100 * share:.0f} % {words}" for name, words in ERRORS.items() if (share := getattr(last, name))]
    what = f"""BAGEL's architecture in small, {num_parameters:,} parameters ({size.num_layers} layers of width
        {size.hidden_size}, two experts, {size.num_heads} query and {size.num_kv_heads} key-value heads, feed-forward
        {size.intermediate_size}; understanding tower of {size.vit_num_layers} layers of width {size.vit_hidden_size};
        patches of {size.vit_patch_size} x {size.vit_patch_size} pixels), bfloat16, pretrained from random weights on
        the synthetic shapes world. Weights: Apache-2.0. `bagel_config.json` and its neighbours hold the exact sizes."""
    how = f"""**How it was made.** `r3 pretrain shapes_pretrain`, seed {recipe.training.seed},
        {duration(sum(leg_seconds))} on {threads} of {machine.get("processor") or "a CPU"},
        {machine.get("accelerator", "no GPU")}:"""
    headroom = f"""**Deliberate headroom.** So that reinforcement learning has something to correct, the last leg
        teaches errors: {"; ".join(errors) or "none"}. A wrong plan is up to {last.plan_errors} edits away from a right
        one. What the base can do is measured with these errors in it:
        less than the same compute could reach."""
    return f"""# The embedded policy of r3-rl

{_paragraph(what)}

{_paragraph(how)}

| leg | steps | examples a step | time |
|---|---|---|---|
{chr(10).join(_leg(number, leg, seconds) for number, (leg, seconds) in enumerate(legs, 1))}

{_paragraph(headroom)}

Measured on held-out prompts, drafts and questions; texts sampled at temperature 1, questions by the likeliest words;
`critique_useful`: share of synthetic wrong drafts whose instruction, followed exactly, leaves fewer edits to do:

| | share | 95 % interval | n |
|---|---|---|---|
{chr(10).join(_row(name, interval) for name, interval in measured.items())}
"""


def _paragraph(words: str) -> str:
    return textwrap.fill(" ".join(words.split()), width=118, break_long_words=False, break_on_hyphens=False)


def _leg(number: int, leg: PretrainSection, seconds: float) -> str:
    mix = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in leg.batch.model_dump().items() if count)
    return f"| {number} | {leg.steps} | {sum(leg.batch.model_dump().values())} ({mix}) | {duration(seconds)} |"


def _row(name: str, i: Interval) -> str:
    return f"| {name} | {100 * i.mean:.1f} % | {100 * i.low:.1f} - {100 * i.high:.1f} | {i.count} |"
