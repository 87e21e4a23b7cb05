"""An evaluation as one offline HTML file: what changed, at which budget, and what it looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from r3_rl.benches.budget_chart import budget_charts
from r3_rl.benches.pictures import gallery
from r3_rl.benches.resampling import Estimate
from r3_rl.benches.results import BenchResult, Row
from r3_rl.benches.text import counts
from r3_rl.observe.marks import interval_mark
from r3_rl.observe.markup import Html, element, join
from r3_rl.observe.page import page
from r3_rl.observe.recorder import write_document
from r3_rl.observe.statistics import Interval

PAGE = "index.html"
Pair = tuple[str, str]


def write_page(
    folder: Path,
    results: Sequence[BenchResult],
    *,
    title: str,
    models: Mapping[str, str],
    comparisons: Sequence[Pair],
    facts: Mapping[str, str],
) -> Path:
    """Write `index.html` from the results and the folder's samples.

    Args:
        folder: of the evaluation.
        results: bench by bench.
        title: the model that is evaluated.
        models: what each key stands for.
        comparisons: pairs of models.
        facts: of the evaluation.
    """
    sections: list[Html] = [_head(title, results, comparisons, models)]
    charts = budget_charts(results, list(models))
    if charts:
        note = (
            "Right images against the number of images a prompt: the loop looks at its first image and redraws it; the "
            "dashed line draws as many first images again, of which the model's own critic picks one."
        )
        sections.append(_section("budgets", "Edit budgets", element("p", note, class_="note"), charts))
    sections += [_bench(result, comparisons, models) for result in results]
    shown = gallery(folder, results, list(models))
    if shown:
        sections.append(_section("gallery", "Gallery", shown))
    sections.append(_section("facts", "What was run", _definitions(facts)))
    footer = element("footer", "Made by r3-rl. Tables: table.md, table.json; every sample: samples.jsonl; images/.")
    write_document(folder / PAGE, str(page(f"{title} - r3-rl evaluation", [*sections, footer])))
    return folder / PAGE


def _section(identity: str, title: str, *content: object) -> Html:
    return element("section", element("h2", title), content, id=identity)  # type: ignore[arg-type]


def _head(title: str, results: Sequence[BenchResult], comparisons: Sequence[Pair], models: Mapping[str, str]) -> Html:
    links = [("budgets", "Edit budgets"), *((result.bench.name, result.bench.title) for result in results)]
    rows = [row for result in results for row in result.rows if row.figure.headline]
    return element(
        "header",
        element("p", "r3-rl evaluation", class_="eyebrow"),
        element("h1", title),
        element("p", "Greedy texts unless said otherwise; changes are paired by prompt or question.", class_="lead"),
        _definitions(models),
        element("nav", [element("a", words, href=f"#{name}") for name, words in [*links, ("gallery", "Gallery")]]),
        element("div", [_tile(row, comparisons) for row in rows], class_="tiles"),
    )


def _tile(row: Row, comparisons: Sequence[Pair]) -> Html | None:
    """The first comparison, in the first decoding; None if it was not measured."""
    decoding, cells = next(iter(row.cells.items()))
    if not cells.models:
        return None
    pair = comparisons[0] if comparisons else None
    change = cells.changes.get(pair) if pair else None
    if pair and change:
        before, after = (_value(cells.models[key].over_items, row) for key in pair)
        figure = [element("b", before), element("i", "→"), element("b", after)]
    else:
        figure = [element("b", _value(next(iter(cells.models.values())).over_items, row))]
    return element(
        "div",
        element("span", f"{row.figure.label}, {decoding}", class_="tile-label"),
        element("span", figure, class_="tile-figure"),
        element("span", _change(change, row), class_="tile-note") if change else None,
        class_="tile",
    )


def _bench(result: BenchResult, comparisons: Sequence[Pair], models: Mapping[str, str]) -> Html:
    said = "; ".join(f"{name}: {value}" for name, value in result.bench.facts.items())
    note = element("p", f"n = {result.num_items:,}. {said}.", class_="note")
    pairs: Sequence[tuple[str | None, str]] = comparisons or [(None, next(iter(models)))]
    tables = []
    for before, after in pairs:
        heading = element("h3", f"{before} → {after}", class_="compared") if len(pairs) > 1 else None
        tables.append([heading, element("div", _table(result, before, after), class_="box")])
    return _section(result.bench.name, result.bench.title, note, tables)


def _table(result: BenchResult, before: str | None, after: str) -> Html:
    """One comparison, greedy and sampled next to each other."""
    decodings = list(result.bench.decodings)
    words = [before, after, "change, win / tie / loss"] if before else [after]
    heads = [
        element("th", f"{decoding}: {word}" if place == 0 else word, scope="col", class_=_number(number, place))
        for number, decoding in enumerate(decodings)
        for place, word in enumerate(words)
    ]
    mark = element("th", "0 – 100 %", scope="col", class_="mark-cell")
    head = element("tr", element("th", "", scope="col"), heads, mark)
    body: list[Html] = []
    group = ""
    for row in result.rows:
        if row.figure.group != group:
            group = row.figure.group
            span = 2 + len(heads)
            body.append(element("tr", element("th", group, colspan=span, scope="colgroup"), class_="group"))
        body.append(_row(row, decodings, before, after))
    return element("table", element("thead", head), element("tbody", body), class_="results")


def _number(decoding: int, place: int) -> str:
    return "number sampled" if decoding and place == 0 else "number"


def _row(row: Row, decodings: Sequence[str], before: str | None, after: str) -> Html:
    cells = []
    for number, decoding in enumerate(decodings):
        found = row.cells[decoding]
        for place, model in enumerate([before, after] if before else [after]):
            shown = found.models.get(model) if model else None
            cells.append(_cell(shown, row, _number(number, place)))
        if before:
            change = found.changes.get((before, after))
            cells.append(element("td", _change(change, row), class_="number"))
    first = row.cells[decodings[0]].models
    one, other = (first.get(model) if model else None for model in (before, after))
    mark = None
    if row.figure.unit == "share":
        mark = interval_mark(one.over_items if one else None, other.over_items if other else None)
    hint = element("small", row.figure.hint) if row.figure.hint else None
    return element(
        "tr", element("th", row.figure.label, hint, scope="row"), cells, element("td", mark, class_="mark-cell")
    )


def _cell(found: Estimate | None, row: Row, class_: str) -> Html:
    if found is None:
        return element("td", element("span", "–", class_="missing"), class_=class_)
    interval = found.over_items
    bounds = "" if row.figure.unit == "distance" else f"{_plain(interval.low, row)} to {_plain(interval.high, row)}"
    lines = [bounds, counts(found)]
    smalls = [element("small", line) for line in lines if line]
    return element("td", element("b", _value(interval, row)), smalls, class_=class_)


def _change(change: Estimate | None, row: Row) -> list[Html]:
    if change is None:
        return [element("span", "–", class_="missing")]
    interval, wanted = change.over_items, row.figure.wanted
    if row.figure.unit == "distance":
        return [element("b", _plain(interval.mean, row, signed=True), class_="unsure")]
    better = interval.mean > 0 if wanted == "more" else interval.mean < 0
    kind = "unsure" if not interval.excludes_zero or wanted == "neither" else "up" if better else "down"
    bounds = f"{_plain(interval.low, row, signed=True)} to {_plain(interval.high, row, signed=True)}"
    parts = [element("b", _plain(interval.mean, row, signed=True), class_=kind), element("small", bounds)]
    if change.tally is not None:
        parts.append(element("small", counts(change), title="win / tie / loss"))
    return parts


def _value(interval: Interval, row: Row) -> str:
    return _plain(interval.mean, row) + ("" if row.figure.unit in ("number", "distance") else " %")


def _plain(value: float, row: Row, *, signed: bool = False) -> str:
    scale, digits = {"number": (1.0, 2), "distance": (1.0, 3)}.get(row.figure.unit, (100.0, 1))
    text = f"{abs(scale * value):.{digits}f}"
    if float(text) == 0:
        return text
    if value < 0:
        return f"\N{MINUS SIGN}{text}"
    return f"+{text}" if signed or row.figure.unit == "change" else text


def _definitions(pairs: Mapping[str, str]) -> Html:
    return element(
        "dl", join([element("dt", key), element("dd", value)] for key, value in pairs.items()), class_="facts"
    )
