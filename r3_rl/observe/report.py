"""One run as one offline HTML file: what changed, how it went, what it looks like, what it ran on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from r3_rl.errors import InputError
from r3_rl.observe.bench_table import FOLDER, benches_table
from r3_rl.observe.curves import course_chart, curves_section, scorers_section, time_section
from r3_rl.observe.evaluation import words_of
from r3_rl.observe.gallery import gallery
from r3_rl.observe.gates import gates_section
from r3_rl.observe.guards import GUARDS, look
from r3_rl.observe.markup import Html, element, join
from r3_rl.observe.page import page
from r3_rl.observe.progress import duration
from r3_rl.observe.recorder import write_document
from r3_rl.observe.rollouts_page import PAGE as ROLLOUTS
from r3_rl.observe.rollouts_page import write_rollouts
from r3_rl.observe.run_files import RunFiles, parsed_recipe, read_run
from r3_rl.observe.tables import before_after_table, headline
from r3_rl.recipe.branching import BranchSection

FACTS = (
    ("model", "kind", "{} model"),
    ("algorithm", "schedule", "schedule {}"),
    ("algorithm", "gain", "gain {}"),
    ("rollout", "num_prompts", "{} prompts a step"),
    ("rollout", "branch", "{plan} x {draft} drafts a prompt, {critique} x {refinement} refinements an image"),
    ("training", "seed", "seed {}"),
)
"""Places in the resolved recipe that tell a reader what kind of run this was, where they exist."""


def write_report(run_folder: str | Path) -> Path:
    """Write `report.html` into a run folder, from whatever the run has left there so far, and `rollouts.html` with all
    that it kept.

    Args:
        run_folder: as `new_run_folder` made it; a run that is still going or was cut off is fine.

    Returns:
        The path of the page. It needs no network: styles, script, charts and pictures are inside.

    Raises:
        InputError: when there is no such folder.
        RunError: when the disk is full.
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise InputError(f"no run folder at {run_folder}", hint="give the folder that `r3 train` printed")
    run, page = read_run(folder), folder / "report.html"
    num_rollouts = write_rollouts(folder, run.trajectories.rows, name=run.name)
    write_document(page, str(render(run, num_rollouts=num_rollouts)))
    return page


def render(run: RunFiles, *, num_rollouts: int = 0) -> Html:
    """The whole page. num_rollouts: on the page of all kept ones beside it, 0 where there is none."""
    sections = (
        _title(run),
        _section("guards", "Guards", _guards(run)),
        _section("results", "Before and after training", _results(run)),
        _section("benches", "Benches", _benches(run)) if run.benches or run.course else None,
        _section("curves", "Curves", curves_section(run.metrics.rows, run.ratio_tolerance)),
        _section("scorers", "Scorers", scorers_section(run.metrics.rows)),
        *([_section("gates", "Gates", gates_section(run.gates.rows))] if run.gates.rows else []),
        _section("time", "Where the time goes", time_section(run.metrics.rows)),
        _section("gallery", "Gallery", _gallery(run, num_rollouts)),
        _section("recipe", "Recipe", _recipe(run)),
        _section("environment", "Environment", _environment(run)),
    )
    footer = element("footer", "Made by r3-rl from the files beside it. This page is complete in itself.")
    return page(f"{run.name} - r3-rl report", [*sections, footer])


def _section(identity: str, title: str, *content: Any) -> Html:
    return element("section", element("h2", title), content, id=identity)


def _title(run: RunFiles) -> Html:
    links = ("results", "curves", "scorers", "time", "gallery", "recipe", "environment")
    return element(
        "header",
        element("p", "r3-rl run report", class_="eyebrow"),
        element("h1", run.name),
        element("p", ". ".join(_facts(run)) + ".", class_="lead"),
        element("nav", [element("a", name.capitalize(), href=f"#{name}") for name in links]),
        headline(run.evaluation) if run.evaluation else None,
    )


def _facts(run: RunFiles) -> list[str]:
    """Short statements on what was run, each from a file that says so."""
    recipe = parsed_recipe(run.resolved or run.recipe)
    settings = []
    for section, key, words in FACTS:
        block = recipe.get(section)
        value = block.get(key) if isinstance(block, Mapping) else None
        if isinstance(value, str | int):
            settings.append(words.format(value))
        elif isinstance(value, Mapping) and set(BranchSection.model_fields) == set(value):
            settings.append(words.format(**value))
    facts = [", ".join(settings)] if settings else []
    rows = run.metrics.rows
    facts.append(f"{rows[-1]['step']:,} steps logged" if rows else "No step logged")
    if "num_prompts" in run.summary:
        facts.append(f"Measured on {run.summary['num_prompts']} held-out prompts")
    if isinstance(run.summary.get("wall_s"), int | float):
        facts.append(f"Took {duration(run.summary['wall_s'])}")
    if run.ending is not None and run.ending.early:
        facts.append(f"Ended early, at step {run.ending.step} of {run.ending.num_steps}")
    elif run.ending is None and not run.summary:
        facts.append("No summary.json: the run is still going, or it was killed")
    return [fact[0].upper() + fact[1:] for fact in facts]


def _guards(run: RunFiles) -> list[Html]:
    parts = []
    if run.ending is not None and run.ending.early:
        parts.append(_box("Ended early", run.ending.words))
    parts += [
        _box(finding.guard.words.capitalize(), finding.sentence)
        for finding in look(run.metrics.rows, actions=run.guards, ratio_tolerance=run.ratio_tolerance)
    ]
    parts += [element("div", element("p", fault), class_="guard") for fault in run.faults]
    checks = "; ".join(guard.words for guard in GUARDS.values() if run.guards.get(guard.name) != "off")
    if not run.metrics.rows:
        return [*parts, element("p", "No metrics, so nothing could be checked.", class_="note")]
    quiet = "" if parts else "None. "
    return [*parts, element("p", f"{quiet}Looked for: {checks}.", class_="note")]


def _box(title: str, sentence: str) -> Html:
    text = f"{sentence[:1].upper()}{sentence[1:]}."
    return element("div", element("p", element("b", f"{title}. "), _with_code(text)), class_="guard")


def _with_code(text: str) -> list[Html | str]:
    """Text with `words` between backticks as code."""
    return [element("code", part) if place % 2 else part for place, part in enumerate(text.split("`"))]


def _results(run: RunFiles) -> list[Html]:
    if run.evaluation is None:
        missing = "No evaluation.json in this run folder, so there is no table. `r3 eval` makes one."
        return [element("p", _with_code(missing), class_="missing")]
    note = (
        "Greedy: every text is made of the likeliest words; sampled: at the recipe's temperature. A gain that only the "
        "sampled figures show is sharper text, not a new skill. 95 % intervals below each figure: Wilson's for shares, "
        "a bootstrap for means. For changes a bootstrap over prompts that keeps each prompt's pair; Newcombe's "
        "unpaired interval for figures on the policy's own plans and drafts, which differ before and after. A change "
        "is coloured if its interval excludes zero. In the marks (of the first figures), grey is before and blue is "
        "after; n is the number of prompts, drafts or questions."
    )
    return [element("p", note, class_="note"), element("div", before_after_table(run.evaluation), class_="box")]


def _benches(run: RunFiles) -> list[Html]:
    parts = [element("div", course_chart(run.course), class_="charts pair")] if run.course else []
    if run.benches:
        note = (
            "Headline figures of the recipe's section `eval` after the last step, with 95 % intervals over items. "
            "Changes are paired by item and coloured if their interval excludes zero. Every figure, sample and image "
            f"is in `{FOLDER}/index.html` of the run."
        )
        parts += [
            element("p", _with_code(note), class_="note"),
            element("div", benches_table(run.benches), class_="box"),
        ]
    return parts


def _gallery(run: RunFiles, num_rollouts: int) -> list[Html]:
    rows = run.trajectories.rows
    if not rows:
        return [element("p", "No trajectories were kept, so there are no pictures.", class_="missing")]
    note = (
        "Each row reads from left to right: the draft with its score and what the scorers said, the critique that the "
        "policy wrote about it and the edit it asked for, then the image drawn from that edit. "
    )
    link = element("a", f"{num_rollouts:,} rollouts to search and sort", href=ROLLOUTS) if num_rollouts else None
    return [element("p", note, link, class_="note"), gallery(rows, run.images)]


def _recipe(run: RunFiles) -> list[Html]:
    parts = [element("pre", run.recipe)] if run.recipe else [element("p", "No recipe.yaml.", class_="missing")]
    if run.resolved:
        title = element("summary", "Resolved recipe: every value, defaults included")
        parts.append(element("details", title, element("pre", run.resolved), class_="fold"))
    if run.changes:
        items = [element("li", str(change)) for change in run.changes]
        parts.append(element("p", "Changed when the run was resumed:", element("ul", items)))
    return parts


def _environment(run: RunFiles) -> list[Html]:
    parts = []
    if run.environment:
        parts.append(_definitions(_flat(run.environment)))
    else:
        parts.append(element("p", "No environment.json.", class_="missing"))
    if run.summary:
        title = element("summary", "summary.json")
        parts.append(element("details", title, _definitions(_flat(run.summary)), class_="fold"))
    return parts


def _definitions(pairs: Iterable[tuple[str, str]]) -> Html:
    return element("dl", join([element("dt", key), element("dd", value)] for key, value in pairs), class_="facts")


def _flat(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in document.items():
        if isinstance(value, Mapping):
            text = ", ".join(f"{name} {inner}" for name, inner in value.items())
        elif isinstance(value, list):
            text = ", ".join(str(inner) for inner in value)
        else:
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
        pairs.append((words_of(str(key)), text))
    return pairs
