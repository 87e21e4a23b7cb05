"""The names of what is measured before and after a run: what each says, on which items, in which decoding.

A name without suffix is of texts sampled at the recipe's temperature, the same name with `_greedy` of texts made of the
likeliest words. Kinds follow a slash: `draft_greedy/counting`. A `#` in this table is a number in a name (`round_1`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

GREEDY = "_greedy"
SHARE = "share"
OWN = "own"
"""`Measure.items` of figures whose items are the policy's own: before and after training they are not the same."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What a figure says."""

    label: str
    hint: str = ""
    items: str = "prompts"
    """The set that it is measured on, a key of `summary.json`'s `sets`, or OWN."""
    decoding: str = "both"
    """`both`, `sampled` (several texts of one prompt, or their entropy), or `once` (no text is written for it)."""
    unit: str = SHARE
    """SHARE; or what a mean is in: `nats` a token, or `levels` of 255 of a pixel's value."""
    wanted: str = "more"
    """`more`, `less` (damage), or `neither` (entropy): how the report colours a change."""
    compared: bool = True
    """False if before and after training cannot be told apart by it."""


GROUPS: Mapping[str, Mapping[str, Measure]] = {
    "Images": {
        "draft": Measure(label="Draft right", hint="first image, no reflection"),
        "round_#": Measure(label="Right after round #", hint="one critique and refinement each, unless it stopped"),
        "final": Measure(label="Right at the end", hint="after all rounds"),
        "held_out_draft": Measure(label="Draft right, to the held-out inspector", hint="no run was rewarded by it"),
        "held_out_final": Measure(label="Right at the end, to the held-out inspector", hint="after all rounds"),
    },
    "Harder kinds": {
        "harder_draft": Measure(label="Draft right", hint="kinds that ask for several things at once"),
        "harder_final": Measure(label="Right at the end", hint="what the loop still adds"),
    },
    "Kinds that were not trained": {
        "other_draft": Measure(label="Draft right", hint="what training on some kinds costs", items="others"),
        "other_final": Measure(label="Right at the end", hint="after all rounds", items="others"),
    },
    "Plan and painter": {
        "plan_right": Measure(label="Plan right", hint="the plan as text satisfies the prompt exactly"),
        "image_right_given_plan": Measure(
            label="Image right, given a right plan", hint="only drafts whose plan is right", items=OWN
        ),
        "true_plan_drawn": Measure(
            label="True plan drawn", hint="a right plan is given as text; nothing is written", items="plans",
            decoding="once",
        ),
        "held_out_true_plan": Measure(
            label="True plan drawn, to the held-out inspector", hint="the same images", items="plans", decoding="once"
        ),
        "true_plan_roughness": Measure(
            label="Roughness of true plans drawn right", hint="mean distance to a clean drawing of the same, of 255",
            items=OWN, decoding="once", unit="levels", wanted="less",
        ),
        "true_edit_drawn": Measure(
            label="True edit drawn", hint="a true instruction is given as text; nothing is written", items="edits",
            decoding="once",
        ),
    },
    "What the rounds change": {
        "repair_round_#": Measure(
            label="Wrong drafts right after round #", hint="the policy's own wrong drafts", items=OWN
        ),
        "damage_round_#": Measure(
            label="Right drafts wrong after round #", hint="the policy's own right drafts", items=OWN, wanted="less"
        ),
    },
    "Looking or drawing again: the same number of images": {
        "draft_pass_#": Measure(label="One of # drafts right", hint="what sampling can reach", decoding="sampled"),
        "best_of_#_oracle": Measure(
            label="Best of # drafts, picked by the inspector", hint="as many images as the loop at most draws",
            decoding="sampled",
        ),
        "best_of_#_own_critic": Measure(
            label="Best of # drafts, picked by its own critic", decoding="sampled",
            hint="the first that the critique stops at, else the last",
        ),
    },
    "Reflection on a fixed set of drafts": {
        "wrong_drafts_edited": Measure(
            label="Wrong drafts edited", hint="the critique asks for an edit", items="wrong"
        ),
        "wrong_drafts_repaired": Measure(
            label="Wrong drafts repaired", hint="right after one refinement", items="wrong"
        ),
        "repaired_by_oracle": Measure(
            label="… by the world's own instruction", hint="a critic without fault before the same painter",
            items="wrong", decoding="once",
        ),
        "repaired_by_stranger": Measure(
            label="… by what it said of another draft", hint="greedy; drawing again without having looked",
            items="wrong", decoding="once",
        ),
        "right_drafts_kept": Measure(label="Right drafts left alone", hint="the critique says stop", items="right"),
        "instruction_useful": Measure(
            label="Instruction useful", hint="followed exactly, it leaves fewer edits to do", items="wrong"
        ),
        "edit_carried_out": Measure(
            label="Edit carried out", hint="the refinement shows exactly what the instruction says", items=OWN
        ),
    },
    "Does the critique stop if and only if the image is right? (ITA)": {
        "ita_fixed": Measure(
            label="ITA, fixed images", hint="right images and near misses one edit away, in pairs", items="pairs"
        ),
        "ita_fixed/right": Measure(label="… of these the right ones", hint="stops", items="pairs"),
        "ita_fixed/wrong": Measure(label="… of these the near misses", hint="does not stop", items="pairs"),
        "ita_base_drafts": Measure(label="ITA, the base's drafts", hint="as many right as wrong", items="base_drafts"),
        "ita_own_drafts": Measure(label="ITA, its own drafts", hint="as many right as wrong", items=OWN),
    },
    "Understanding": {
        "listing": Measure(label="Exact listing", hint="the critique names what is in the image", items="pairs"),
        "questions": Measure(label="Questions answered", hint="on images it did not draw", items="questions"),
        "questions_own": Measure(label="Questions answered", hint="on images that it drew itself", items=OWN),
    },
    "Swap test: the trained model's own wrong drafts": {
        "swap_own_critic_edits": Measure(
            label="Edited by its own critic", hint="should not fall below the next line", items=OWN, compared=False
        ),
        "swap_base_critic_edits": Measure(
            label="Edited by the base's critic", hint="same drafts, read by the base", items=OWN, compared=False
        ),
    },
    "Entropy of the sampled texts, nats a token": {
        "entropy_plan": Measure(label="Plans", decoding="sampled", unit="nats", wanted="neither"),
        "entropy_critique": Measure(
            label="Critiques", items="pairs", decoding="sampled", unit="nats", wanted="neither"
        ),
    },
}  # fmt: skip
_MEASURES = {name: measure for group in GROUPS.values() for name, measure in group.items()}
HEADLINE = ("draft", "final", "ita_fixed", "questions")
"""The figures that a reader sees first, greedy."""


def greedy(name: str) -> str:
    """The name of the same figure with greedy texts.

    >>> greedy("draft/counting")
    'draft_greedy/counting'
    """
    head, slash, kind = name.partition("/")
    return f"{head}{GREEDY}{slash}{kind}"


def plain(name: str) -> str:
    """The name without its decoding.

    >>> plain("draft_greedy/counting"), plain("draft")
    ('draft/counting', 'draft')
    """
    head, slash, kind = name.partition("/")
    return f"{head.removesuffix(GREEDY)}{slash}{kind}"


def plain_names(names: Iterable[str]) -> list[str]:
    """Names of figures without their decoding, each once, in the order of the first.

    >>> plain_names(["draft", "final", "draft_greedy"])
    ['draft', 'final']
    """
    return list(dict.fromkeys(map(plain, names)))


def pattern(name: str) -> str:
    """The name's key in GROUPS, decoding left out and its number as `#`.

    >>> pattern("round_1_greedy")
    'round_#'
    """
    return re.sub(r"\d+", "#", plain(name))


def measure_of(name: str) -> Measure | None:
    """What the table says about a figure; for a kind that it does not name, what it says about all kinds.

    >>> measure_of("draft_greedy/counting").label
    'Draft right'
    """
    found = _MEASURES.get(pattern(name))
    return found or _MEASURES.get(pattern(name).partition("/")[0])


def unit_of(name: str) -> str:
    """What the figure is in; a name that the table does not hold is taken for a share.

    >>> unit_of("draft_greedy/counting"), unit_of("entropy_plan")
    ('share', 'nats')
    """
    measure = measure_of(name)
    return SHARE if measure is None else measure.unit
