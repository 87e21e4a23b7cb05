"""What `r3 probe` writes: a table of layers and pairs of stages as text, as JSON, and as a page with coloured cells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r3_rl.evaluate.probe import Probe
from r3_rl.observe.markup import Html, element
from r3_rl.observe.page import page
from r3_rl.observe.recorder import write_document
from r3_rl.observe.statistics import Interval

UNSEEN = "no signal"
NOTE = (
    "Cosine of two stages' gradients under the noise of sampling, with a 95 % interval over the steps: below 0 they "
    "pull against each other. Agreement is the cosine of one stage's gradients in two steps: near 0, what was measured "
    "is noise, and a pair says nothing until there are more steps or more rollouts in each."
)


def table_lines(probe: Probe) -> list[str]:
    """The sums of the branches and of all weights as text, a pair of stages a line."""
    places = [place for place in probe.grams if "/" not in place]
    rows = [["", *places]]
    for name, (a, b) in zip(_pair_names(probe), probe.pairs, strict=True):
        rows.append([name, *(_words(probe.cosine(place, a, b)) for place in places)])
    for i, name in enumerate(probe.objectives):
        rows.append([f"norm of {name}", *(f"{probe.norms(place)[i]:.2g}" for place in places)])
        rows.append(["  two steps agree", *(f"{probe.agreement(place)[i]:+.2f}" for place in places)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def write_probe(probe: Probe, folder: Path, *, title: str) -> Path:
    """Write `probe.md`, `probe.json` and `probe.html` into a folder, which is made; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    heading = f"# {title}\n\n{NOTE}\n\n"
    write_document(folder / "probe.md", heading + "\n".join(["```", *table_lines(probe), "```"]) + "\n")
    write_document(folder / "probe.json", json.dumps(_document(probe), indent=1) + "\n")
    content = [
        element("header", element("p", "r3-rl probe", class_="eyebrow"), element("h1", title)),
        element("section", element("p", f"{NOTE} {probe.num_steps} steps.", class_="note"), _heat(probe)),
        element("section", element("h2", "How long the gradients are"), _norms(probe)),
    ]
    write_document(folder / "probe.html", str(page(f"{title} - r3-rl probe", content)))
    return folder / "probe.html"


def _document(probe: Probe) -> dict[str, Any]:
    names = _pair_names(probe)
    return {
        "objectives": list(probe.objectives),
        "steps": probe.num_steps,
        "places": {
            place: {
                "cosine": {
                    name: found.as_dict() if (found := probe.cosine(place, a, b)) else None
                    for name, (a, b) in zip(names, probe.pairs, strict=True)
                },
                "measured_cosine": {
                    name: _finite(float(probe.measured(place)[a, b]))
                    for name, (a, b) in zip(names, probe.pairs, strict=True)
                },
                "norm": dict(zip(probe.objectives, probe.norms(place).tolist(), strict=True)),
                "agreement": dict(zip(probe.objectives, map(_finite, probe.agreement(place).tolist()), strict=True)),
            }
            for place in probe.grams
        },
    }


def _finite(value: float) -> float | None:
    return value if value == value else None


def _pair_names(probe: Probe) -> list[str]:
    return [f"{probe.objectives[a]} / {probe.objectives[b]}" for a, b in probe.pairs]


def _words(found: Interval | None) -> str:
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]" if found else UNSEEN


def _table(heads: Sequence[str], rows: Sequence[Html]) -> Html:
    head = element("tr", [element("th", words, scope="col") for words in heads])
    table = element("table", element("thead", head), element("tbody", rows), class_="heat")
    return element("div", table, class_="box", style="overflow-x: auto")


def _heat(probe: Probe) -> Html:
    rows = []
    for place in probe.grams:
        cells = []
        for a, b in probe.pairs:
            found = probe.cosine(place, a, b)
            cells.append(element("td", _words(found), style=_colour(found), class_="number"))
        rows.append(element("tr", element("th", place, scope="row"), cells))
    return _table(["layer", *_pair_names(probe)], rows)


def _colour(found: Interval | None) -> str | None:
    """Red where two pull against each other, blue where they agree; pale where the interval holds 0."""
    if found is None:
        return None
    strength = min(abs(found.mean), 1.0) * (1.0 if found.excludes_zero else 0.35)
    red, green, blue = (214, 69, 65) if found.mean < 0 else (52, 120, 200)
    return f"background: rgba({red}, {green}, {blue}, {0.75 * strength:.2f})"


def _norms(probe: Probe) -> Html:
    rows = []
    for place in probe.grams:
        values = zip(probe.norms(place).tolist(), probe.agreement(place).tolist(), strict=True)
        cells = [
            element("td", f"{norm:.2g}, agreement {agreed:+.2f}" if norm else "none", class_="number")
            for norm, agreed in values
        ]
        rows.append(element("tr", element("th", place, scope="row"), cells))
    return _table(["layer", *probe.objectives], rows)
