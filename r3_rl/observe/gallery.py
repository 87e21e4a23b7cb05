"""The report's gallery: draft | critique | round 1 | critique | round 2, with scores and words."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from r3_rl.observe.evaluation import words_of
from r3_rl.observe.markup import Html, element
from r3_rl.observe.strip import RIGHT_SCORE, round_name
from r3_rl.observe.trajectories import SeenRound, SeenTrajectory, load_trajectory

SHOWN_PER_TAB = 8
SHOWN_IN_TIME = 3
EMBEDDED_PX = 256
"""Longest side of an image inside the page."""
HARD_PIXELS_PX = 128
"""Images up to this side keep hard pixels when they are enlarged."""
LONG_CRITIQUE = 240
"""Characters of a critique that are shown unfolded."""
NOT_A_TRAJECTORY = (KeyError, TypeError, ValueError, AttributeError, OSError)


@dataclass(frozen=True, kw_only=True)
class Tab:
    """One selection of the gallery."""

    title: str
    note: str
    """Says how it was selected, or why it is empty."""
    cards: tuple[Html, ...]


def gallery(rows: Sequence[Mapping[str, Any]], images: Path) -> Html:
    """All tabs; they need no script.

    Args:
        rows: lines of `trajectories.jsonl`.
        images: the run's `images/` folder.
    """
    tabs = [_same_prompts(rows, images)]
    phase = "after" if any(row.get("phase") == "after" for row in rows) else "train"
    source = "held-out prompts after training" if phase == "after" else "the last quarter of the training steps"
    pool = [row for row in rows if row.get("phase") == phase]
    if phase == "train" and pool:
        late = 0.75 * max(row["step"] for row in pool)
        pool = [row for row in pool if row["step"] >= late]
    for kept_as in ("best", "worst", "random"):
        # Latest step first; within a step the recorder's order, which is by rank.
        chosen = sorted((row for row in pool if row.get("kept_as") == kept_as), key=lambda row: -row["step"])
        chosen = chosen[:SHOWN_PER_TAB]
        note = f"{kept_as.capitalize()} of {source}." if chosen else f"None kept among {source}."
        tabs.append(Tab(title=kept_as.capitalize(), note=note, cards=_cards([[row] for row in chosen], images)))
    tabs.append(_over_time(rows, images))
    shown = next((number for number, tab in enumerate(tabs) if tab.cards), 0)
    inputs, labels, panels = [], [], []
    for number, tab in enumerate(tabs):
        identity = f"tab-{number}"
        inputs.append(
            element("input", type="radio", name="gallery", id=identity, class_="tab-input", checked=number == shown)
        )
        count = element("span", str(len(tab.cards)), class_="tab-count")
        labels.append(element("label", tab.title, " ", count, for_=identity))
        panels.append(element("div", element("p", tab.note, class_="note"), tab.cards, class_="panel"))
    return element("div", inputs, element("div", labels, class_="tab-bar"), panels, class_="tabs")


def _same_prompts(rows: Sequence[Mapping[str, Any]], images: Path) -> Tab:
    by_prompt: dict[Any, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("phase") in ("before", "during", "after"):
            by_prompt.setdefault(row.get("prompt"), {}).setdefault(row["step"], row)
    histories = [[found[step] for step in sorted(found)] for found in by_prompt.values() if len(found) > 1]
    # Random ones first: prompts that were picked for being best or worst do not show what training did.
    histories.sort(key=lambda history: history[0].get("kept_as") != "random")
    chosen = [[history[place] for place in evenly(len(history), SHOWN_IN_TIME)] for history in histories]
    note = (
        "The same held-out prompts before, during and after training, as far as they were kept."
        if chosen
        else "No prompt was kept both before and after training."
    )
    return Tab(title="Same prompts", note=note, cards=_cards(chosen[:SHOWN_PER_TAB], images))


def evenly(count: int, most: int) -> list[int]:
    """At most `most` places out of `count`, the first and the last among them.

    >>> evenly(9, 3), evenly(2, 3)
    ([0, 4, 8], [0, 1])
    """
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))})


def _over_time(rows: Sequence[Mapping[str, Any]], images: Path) -> Tab:
    kept = [row for row in rows if row.get("phase") == "train" and row.get("kept_as") == "random"]
    first_of_step = list({row["step"]: row for row in reversed(kept)}.values())[::-1]
    chosen = [[first_of_step[place]] for place in evenly(len(first_of_step), SHOWN_PER_TAB)]
    note = "One random trajectory from each of several training steps." if chosen else "No training step was kept."
    return Tab(title="During training", note=note, cards=_cards(chosen, images))


def _cards(groups: Sequence[Sequence[Mapping[str, Any]]], images: Path) -> tuple[Html, ...]:
    return tuple(_card(group, images) for group in groups)


def _card(group: Sequence[Mapping[str, Any]], images: Path) -> Html:
    """One prompt; with two rows (before, after) each is labelled."""
    bodies: list[Html] = []
    header: Html | None = None
    for row in group:
        try:
            seen = load_trajectory(row, images)
        except NOT_A_TRAJECTORY as error:
            bodies.append(element("p", f"This trajectory could not be read: {error!r}", class_="missing"))
            continue
        label = str(row.get("phase")) if row.get("phase") in ("before", "after") else f"step {row['step']}"
        header = header or _header(seen, label if len(group) == 1 else "")
        outcome = element("div", element("span", label, class_="phase"), shown_outcome(seen), class_="outcome")
        bodies += [outcome if len(group) > 1 else Html(), shown_trajectory(seen)]
    return element("article", header, bodies, class_="card")


def _header(seen: SeenTrajectory, label: str) -> Html:
    tag = element("span", words_of(seen.tag), class_="tag") if seen.tag else None
    outcome = [element("span", label, class_="phase"), shown_outcome(seen)] if label else None
    return element("header", element("h3", seen.prompt), tag, outcome)


def outcome(seen: SeenTrajectory) -> tuple[str, str]:
    """What the rounds did, in words, and how they are coloured: `up`, `down` or `quiet`."""
    first, last = seen.rounds[0].score, seen.rounds[-1].score
    if first is None or last is None:
        return "score missing", "quiet"
    if last >= RIGHT_SCORE:
        return "right at once" if first >= RIGHT_SCORE else "repaired", "up"
    if first >= RIGHT_SCORE:
        return "broken by an edit", "down"
    if len(seen.rounds) == 1:
        return "wrong, left as it was", "down"
    return "better, still wrong" if last > first else "worse" if last < first else "still wrong", "down"


def shown_outcome(seen: SeenTrajectory) -> Html:
    """The same as an element."""
    words, kind = outcome(seen)
    return element("span", words, class_=f"verdict {kind}")


def shown_trajectory(seen: SeenTrajectory) -> Html:
    """Its images from left to right, each with its score and what was said about it."""
    return element("div", [_round(this, number, seen) for number, this in enumerate(seen.rounds)], class_="rounds")


def _round(this: SeenRound, number: int, seen: SeenTrajectory) -> Html:
    name = round_name(number)
    if this.pixels is None:
        picture = element("div", "image missing", class_="no-image missing")
    else:
        hard = max(this.pixels.shape[:2]) <= HARD_PIXELS_PX
        picture = element(
            "img", src=data_uri(this.pixels), alt=f"{name} of: {seen.prompt}", class_="hard" if hard else None
        )
    caption = element("figcaption", element("span", name), _score(this))
    raw = ", ".join(f"{key} {'missing' if score is None else f'{score:.2f}'}" for key, score in this.scores.items())
    words = [element("p", text, class_="words") for text in (this.words, raw if len(this.scores) > 1 else "") if text]
    plan = element("details", element("summary", "plan"), element("p", this.plan), class_="plan") if this.plan else None
    return element(
        "div", element("figure", picture, caption, words), element("div", _critique(this), plan, class_="said"),
        class_="round",
    )  # fmt: skip


def _score(this: SeenRound) -> Html:
    if this.score is None:
        return element("b", "no score", class_="quiet")
    kind = "up" if this.score >= RIGHT_SCORE else "down" if this.score <= 0.5 else "partly"
    return element("b", f"{this.score:.2f}", class_=kind)


def _critique(this: SeenRound) -> list[Html]:
    if this.critique is None:
        return [element("p", "no rounds left", class_="quiet")]
    if not this.well_formed:
        verdict = element("p", "malformed critique: the loop ends", class_="instruction down")
    elif this.stop:
        verdict = element("p", "stop: no further edit", class_="instruction")
    else:
        verdict = element("p", element("i", "→ "), this.instruction, class_="instruction")
    thoughts = this.thoughts
    if len(thoughts) <= LONG_CRITIQUE:
        return [element("p", thoughts, class_="critique"), verdict]
    summary = element("summary", f"{thoughts[:LONG_CRITIQUE].rstrip()} ...")
    return [element("details", summary, element("p", thoughts), class_="critique"), verdict]


def data_uri(pixels: np.ndarray) -> str:
    """An image as text inside the page: PNG when small, else JPEG at `EMBEDDED_PX`.

    >>> data_uri(np.zeros((2, 2, 3), dtype=np.uint8))[:22]
    'data:image/png;base64,'
    """
    image = Image.fromarray(pixels)
    buffer, kind = io.BytesIO(), "png"
    if max(image.size) > HARD_PIXELS_PX:
        image.thumbnail((EMBEDDED_PX, EMBEDDED_PX))
        kind = "jpeg"
        image.save(buffer, format="JPEG", quality=88)
    else:
        image.save(buffer, format="PNG", optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
