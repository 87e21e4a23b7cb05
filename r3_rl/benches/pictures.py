"""The gallery of an evaluation: the same prompts by every model, chosen by what became of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from r3_rl.benches.base import GREEDY
from r3_rl.benches.results import BenchResult
from r3_rl.observe.evaluation import words_of
from r3_rl.observe.gallery import shown_outcome, shown_trajectory
from r3_rl.observe.markup import Html, element
from r3_rl.observe.trajectories import SeenRound, SeenTrajectory

SHOWN = 6
"""Prompts of a tab."""
Rows = Mapping[str, Mapping[str, Any]]
"""Samples of one prompt by model."""


def gallery(folder: Path, results: Sequence[BenchResult], models: Sequence[str]) -> Html | None:
    """Return tabs of prompts, greedy, first seed; None if no bench drew images.

    Args:
        folder: whose samples and images are shown.
        results: of which benches.
        models: in the order in which they are shown.
    """
    prompts = list(_prompts(folder, [result.bench.name for result in results]))
    if not prompts:
        return None
    choices = _choices(models)
    found = {name: [rows for rows in prompts if chosen(rows)] for name, (_, chosen) in choices.items()}
    opened = next(name for name in found if found[name])
    inputs, labels, panels = [], [], []
    for number, (name, (note, _)) in enumerate(choices.items()):
        tab: dict[str, Any] = {"id": f"tab-{number}", "class_": "tab-input", "checked": name == opened}
        inputs.append(element("input", type="radio", name="gallery", **tab))
        count = element("span", str(len(found[name])), class_="tab-count")
        labels.append(element("label", name, " ", count, for_=f"tab-{number}"))
        shown = found[name][:SHOWN]
        said = f"{note} {len(shown)} of {len(found[name])} prompts." if shown else f"{note} There is none."
        cards = [_card(folder, rows, models) for rows in shown]
        panels.append(element("div", element("p", said, class_="note"), cards, class_="panel"))
    return element("div", inputs, element("div", labels, class_="tab-bar"), panels, class_="tabs")


def _choices(models: Sequence[str]) -> dict[str, tuple[str, Callable[[Rows], bool]]]:
    """By tab: what it says, and which prompts are in it."""
    first, last = models[0], models[-1]

    def right(rows: Rows, model: str, name: str) -> bool:
        return bool(rows[model]["values"].get(name))

    def became(rows: Rows, before: bool, after: bool) -> bool:
        return (right(rows, last, "draft"), right(rows, last, "final")) == (before, after)

    def differ(rows: Rows, one: bool, other: bool) -> bool:
        return (right(rows, first, "final"), right(rows, last, "final")) == (one, other)

    choices: dict[str, tuple[str, Callable[[Rows], bool]]] = {
        "Repaired": (f"A wrong first image that '{last}' repairs.", lambda rows: became(rows, False, True)),
        "Damaged": (f"A right first image that an edit of '{last}' breaks.", lambda rows: became(rows, True, False)),
    }
    if len(models) > 1:
        choices["Better"] = (f"Right with '{last}', wrong with '{first}'.", lambda rows: differ(rows, False, True))
        choices["Worse"] = (f"Wrong with '{last}', right with '{first}'.", lambda rows: differ(rows, True, False))
    return {**choices, "First": ("The first prompts, whatever came out.", lambda rows: True)}


def _prompts(folder: Path, benches: Sequence[str]) -> Iterator[Rows]:
    """Greedy samples of the first seed of benches that drew, by prompt."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    with (folder / "samples.jsonl").open(encoding="utf-8") as stream:
        for line in stream:
            if '"rounds": [' not in line:
                continue
            row = json.loads(line)
            if row["decoding"] == GREEDY and row["seed"] == 0 and row["copy"] == 0 and row["bench"] in benches:
                found.setdefault((row["bench"], row["item"]), {})[row["model"]] = row
    yield from found.values()


def _card(folder: Path, rows: Rows, models: Sequence[str]) -> Html:
    first = next(iter(rows.values()))
    tag = element("span", words_of(first["tag"]), class_="tag") if first["tag"] else None
    bodies: list[Html] = []
    for model in models:
        if model in rows:
            seen = _seen(folder, rows[model])
            label = element("span", model, class_="phase")
            bodies += [element("div", label, shown_outcome(seen), class_="outcome"), shown_trajectory(seen)]
    return element("article", element("header", element("h3", first["prompt"]), tag), bodies, class_="card")


def _seen(folder: Path, row: Mapping[str, Any]) -> SeenTrajectory:
    rounds = tuple(
        SeenRound(
            pixels=_pixels(folder / row["images"][f"round_{number}"]),
            score=this["score"],
            scores=this["scores"],
            words=this["words"],
            plan=this.get("plan", ""),
            critique=this.get("critique"),
            instruction=this.get("instruction", ""),
            stop=this["stop"],
            well_formed=this.get("well_formed", True),
        )
        for number, this in enumerate(row["rounds"])
    )
    return SeenTrajectory(prompt=row["prompt"], tag=row["tag"], rounds=rounds)


def _pixels(path: Path) -> np.ndarray | None:
    if not path.is_file():
        return None
    with Image.open(path, formats=("PNG",)) as image:
        return np.asarray(image.convert("RGB"))
