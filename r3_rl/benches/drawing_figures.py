"""The rows of the table for prompts that were drawn with the loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from r3_rl.benches.base import Figure, Sums
from r3_rl.observe.evaluation import words_of

BUDGETS = "Right images at every edit budget"
CHANGES = "What the rounds change"
AGAIN = "Looking or drawing again: the same number of images"
SCORES = "Mean score at every edit budget"
READING = "Does the first critique stop if and only if the first image is right? (ITA)"
BY_KIND, SCORE_BY_KIND = "By kind of prompt", "Mean score by kind of prompt"


def drawing_figures(names: Sequence[str], rounds: Sequence[int], *, graded: bool, headline: bool) -> list[Figure]:
    """Return the rows in order.

    Args:
        names: of the values that were measured.
        rounds: edit budgets that are reported.
        graded: whether mean scores are reported in addition.
        headline: whether the first and the last budget are figures to remember.
    """
    later = [number for number in rounds if number]
    rows = [Figure(name="draft", label="Draft", hint="first image, no reflection", group=BUDGETS, headline=headline)]
    rows += [
        Figure(
            name=f"round_{n}",
            label=f"At most {_rounds(n)}",
            hint="critique and refinement, unless it stopped" if n == later[0] else "",
            group=BUDGETS,
            headline=headline and n == later[-1],
        )
        for n in later
    ]
    if graded:
        rows += [
            Figure(name=f"score_{n}", label=f"At most {_rounds(n)}" if n else "Draft", group=SCORES) for n in rounds
        ]
    rows += _changes(later) + _again(later) + _reading()
    return [*rows, *_by_kind(names, later, SCORE_BY_KIND if graded else BY_KIND), _unscored()]


def _rounds(number: int) -> str:
    return "1 round" if number == 1 else f"{number} rounds"


def _changes(later: Sequence[int]) -> list[Figure]:
    kinds = (
        ("gain", "Gain of", "less the draft, by prompt; helped / same / harmed", "change", "neither"),
        ("repair", "Repair rate,", "wrong first images that end right", "share", "more"),
        ("damage", "Damage rate,", "right first images that end wrong", "share", "less"),
        ("images", "Images drawn,", "fewer than the most if critiques stop", "number", "neither"),
    )
    return [
        Figure(name=f"{name}_{n}", label=f"{label} {_rounds(n)}", hint=hint, unit=unit, wanted=wanted, group=CHANGES)
        for name, label, hint, unit, wanted in kinds
        for n in later
    ]


def _again(later: Sequence[int]) -> list[Figure]:
    rows = []
    for n in later:
        best = f"Best of {n + 1} drafts"
        rows += [
            Figure(name=f"best_own_critic_{n}", label=f"{best}, own critic picks", group=AGAIN,
                   hint="the first that it stops at, else the last"),
            Figure(name=f"best_oracle_{n}", label=f"{best}, judge picks", group=AGAIN,
                   hint="what drawing again can reach"),
            Figure(name=f"looking_{n}", label=f"{_rounds(n).capitalize()} less best of {n + 1}", group=AGAIN,
                   unit="change", wanted="neither", hint="above 0: looking beats drawing again, own critic"),
        ]  # fmt: skip
    return rows


def _reading() -> list[Figure]:
    def balanced(sums: Sums) -> np.ndarray:
        return (sums.mean("ita_own/right") + sums.mean("ita_own/wrong")) / 2

    return [
        Figure(name="ita_own", label="ITA, own drafts", hint="mean of the next two", group=READING, formula=balanced),
        Figure(name="ita_own/right", label="… right drafts", hint="stops", group=READING),
        Figure(name="ita_own/wrong", label="… wrong drafts", hint="does not stop", group=READING),
    ]


def _by_kind(names: Sequence[str], later: Sequence[int], group: str) -> list[Figure]:
    tags = list(dict.fromkeys(name.partition("/")[2] for name in names if name.startswith(("draft/", "final/"))))
    if len(tags) < 2:
        return []
    parts = (("draft", "draft"), ("final", f"at most {_rounds(later[-1])}")) if later else (("draft", "draft"),)
    return [
        Figure(name=f"{part}/{tag}", label=words_of(tag), hint=hint, group=group)
        for tag in tags
        for part, hint in parts
    ]


def _unscored() -> Figure:
    return Figure(name="unscored", label="Prompts without a score", hint="left out above", wanted="less", group=BUDGETS)
