"""Every rollout that a run kept, as one page to search, filter and sort; the report's gallery is a choice of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from r3_rl.observe.evaluation import words_of
from r3_rl.observe.gallery import NOT_A_TRAJECTORY, evenly, outcome, shown_outcome, shown_trajectory
from r3_rl.observe.markup import Html, element
from r3_rl.observe.page import page
from r3_rl.observe.recorder import write_document
from r3_rl.observe.trajectories import SeenTrajectory, load_trajectory

PAGE = "rollouts.html"
MOST = 400
"""Rollouts of a page: their images are inside it."""
ORDERS = {
    "newest": "last steps first",
    "oldest": "first steps first",
    "gained": "largest gain of the rounds",
    "lost": "largest loss by the rounds",
    "best": "best last image",
    "worst": "worst last image",
}
"""As the page's script knows them."""


def write_rollouts(folder: Path, rows: Sequence[Mapping[str, Any]], *, name: str) -> int:
    """Write `rollouts.html` into a run folder.

    Args:
        folder: of the run; its `images/` holds the pictures.
        rows: lines of `trajectories.jsonl`.
        name: of the run.

    Returns:
        How many rollouts are on the page: at most MOST, evenly from first to last. Without any nothing is written.

    Raises:
        RunError: when the disk is full.
    """
    chosen = [rows[place] for place in evenly(len(rows), MOST)]
    cards, seen = [], []
    for row in chosen:
        try:
            this = load_trajectory(row, folder / "images")
            cards.append(_card(row, this))
            seen.append((row, this))
        except NOT_A_TRAJECTORY:
            continue  # the page says of how many it shows so many
    if not cards:
        return 0
    kept = f"{len(cards):,} rollouts" if len(cards) == len(rows) else f"{len(cards):,} of {len(rows):,} kept rollouts"
    lead = f"{kept}, with every image, critique and score. All lines: trajectories.jsonl, beside the folder images."
    header = element(
        "header",
        element("p", "r3-rl rollouts", class_="eyebrow"),
        element("h1", name),
        element("p", lead, class_="lead"),
    )
    content = [header, _filters(seen), element("div", cards, class_="rollouts")]
    write_document(folder / PAGE, str(page(f"{name} - rollouts", content)))
    return len(cards)


def _filters(seen: Sequence[tuple[Mapping[str, Any], SeenTrajectory]]) -> Html:
    """What the page is searched by. Without a script all rollouts are shown."""
    kinds = sorted({this.tag for _, this in seen if this.tag})
    outcomes = sorted({outcome(this)[0] for _, this in seen})
    phases = list(dict.fromkeys(_phase(row) for row, _ in seen))
    search = element("input", type="search", name="text", placeholder="words of prompt, plan, critique, verdict")
    return element(
        "div",
        element("label", "Search", search),
        _choice("Kind", "tag", {kind: words_of(kind) for kind in kinds}),
        _choice("Outcome", "outcome", {words: words for words in outcomes}),
        _choice("When", "phase", {phase: phase for phase in phases}),
        element("label", "Order", element("select", _options(ORDERS), name="order")),
        element("output", f"{len(seen)} shown"),
        class_="filters",
    )


def _choice(label: str, name: str, values: Mapping[str, str]) -> Html:
    return element("label", label, element("select", _options({"": "all", **values}), name=name))


def _options(values: Mapping[str, str]) -> Iterator[Html]:
    return (element("option", words, value=value) for value, words in values.items())


def _phase(row: Mapping[str, Any]) -> str:
    return str(row.get("phase", "train"))


def _card(row: Mapping[str, Any], seen: SeenTrajectory) -> Html:
    said = [seen.prompt, words_of(seen.tag)]
    for this in seen.rounds:
        said += [this.plan, this.critique or "", this.words]
    when = element("span", f"{_phase(row)}, step {row['step']}", class_="phase")
    tag = element("span", words_of(seen.tag), class_="tag") if seen.tag else None
    last = seen.rounds[-1].score
    return element(
        "article",
        element("header", element("h3", seen.prompt), tag, element("span", when, " ", shown_outcome(seen))),
        shown_trajectory(seen),
        class_="card",
        data_text=" ".join(" ".join(said).lower().split()),
        data_tag=seen.tag,
        data_outcome=outcome(seen)[0],
        data_phase=_phase(row),
        data_step=int(row["step"]),
        data_gain=seen.change,
        data_score="" if last is None else last,
    )
