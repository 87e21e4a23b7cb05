"""README.md beside an exported adapter: what was measured, on what it was trained, how to load it, what it draws."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r3_rl.observe.bench_table import markdown_table
from r3_rl.observe.evaluation import Evaluation, Figure, Row, grouped_rows
from r3_rl.observe.gallery import NOT_A_TRAJECTORY
from r3_rl.observe.run_files import RunFiles
from r3_rl.observe.statistics import Interval
from r3_rl.observe.strip import strip
from r3_rl.observe.trajectories import SeenTrajectory, load_trajectory

PICTURES = "pictures"
_MOST_PICTURES = 4
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&$])")


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the card says beside the run's own files."""

    title: str
    base: str
    """The base in words."""
    base_fingerprint: str
    loading: str
    """Lines of Python that load it."""
    proof: str
    """What was compared on export, and how it came out."""
    merged: bool
    """True for full weights."""
    kept: str = ""
    """Of the adapter of a run's best step: by what it was kept."""
    made_of: tuple[str, ...] = ()
    """Adapters that were added up, each with its weight, in words; empty for one that was trained as it is."""


def write_model_card(folder: Path, facts: CardFacts, run: RunFiles | None, recipe: Mapping[str, Any]) -> Path:
    """Writes README.md and its pictures into the folder and returns its path.

    Args:
        folder: of the adapter or the merged weights.
        facts: as above.
        run: the run's files; None when only an adapter was there, then nothing is said to be measured.
        recipe: the resolved recipe, parsed; empty when there is none.
    """
    pictures = _pictures(run, folder / PICTURES) if run else []
    sections = [
        _front_matter(facts),
        f"# {escape(facts.title)}",
        _introduction(facts),
        "## Measured",
        *([facts.kept] if facts.kept else []),
        *_measured(run),
        *(["## Pictures", *pictures] if pictures else []),
        "## How it was trained",
        _added_up(facts.made_of) if facts.made_of else _training(recipe, run),
        "## Load it",
        f"```python\n{facts.loading.strip()}\n```",
        facts.proof,
        "## Limits",
        "The figures hold for the prompts and scorers of this run and say nothing beyond them. What a scorer does not "
        "see, training may have changed for the worse.",
    ]
    path = folder / "README.md"
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return path


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line.

    >>> print(escape("a <b>red</b> | circle"))
    a \\<b\\>red\\</b\\> \\| circle
    """
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _front_matter(facts: CardFacts) -> str:
    kind = ["library_name: peft"] if not facts.merged else []
    tags = ["r3-rl", "reinforcement-learning", "text-to-image", *([] if facts.merged else ["lora"])]
    return "\n".join(["---", *kind, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _introduction(facts: CardFacts) -> str:
    what = "Full weights with a LoRA adapter merged in" if facts.merged else "A LoRA adapter in PEFT's layout"
    return (
        f"{what}, trained with r3-rl by reinforcement learning on the policy's own drafts, critiques and refinements."
        "\n\n"
        f"Base: {escape(facts.base)}, SHA-256 of its weights `{facts.base_fingerprint}`."
    )


def _measured(run: RunFiles | None) -> Iterator[str]:
    if run is None or (run.evaluation is None and not run.benches):
        yield "Nothing was measured: there was no `evaluation.json` beside the adapter."
        return
    if run.evaluation is not None:
        yield from _figures(run.evaluation)
    if run.benches:
        yield "Benches, with 95 % intervals over items; changes are paired by item:"
        yield markdown_table(run.benches, escape)
    if seconds := run.summary.get("wall_s"):
        yield f"Training and evaluation took {float(seconds):,.0f} s."


def _figures(evaluation: Evaluation) -> Iterator[str]:
    yield (
        "Means with 95 % intervals on held-out prompts, before and after training; n is the number of cases. Greedy: "
        "every text is made of the likeliest words; sampled: at the recipe's temperature. A gain that only the sampled "
        "figures show is sharper text, not a new skill."
    )
    yield from _untrained(evaluation)
    yield table(evaluation)


def _untrained(evaluation: Evaluation) -> Iterator[str]:
    """What greedy decoding of the base reaches, so that no reader takes the temperature for the training."""
    draft, final = (evaluation.row(name).greedy.before for name in ("draft", "final"))
    if draft is not None and final is not None:
        yield (
            f"With greedy texts the untrained base draws {100 * draft.mean:.1f} % of the prompts right at first, and "
            f"{100 * final.mean:.1f} % after all rounds."
        )
    else:
        yield "Not measured with greedy texts: part of what changed may be the temperature's."


def table(evaluation: Evaluation) -> str:
    """The before / after table as Markdown, greedy and sampled next to each other."""
    lines = [
        "| | greedy before | after | change | sampled before | after | change | n |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for group, rows in grouped_rows(evaluation).items():
        lines.append(f"| **{escape(group)}** | | | | | | | |")
        lines += [_line(row) for row in rows]
    return "\n".join(lines)


def _line(row: Row) -> str:
    label = f"{row.label} ({row.hint})" if row.hint else row.label
    greedy = _cells(row, row.greedy, "–" if row.decoding == "sampled" else "not measured")
    sampled = _cells(row, row.sampled, "the same" if row.decoding == "once" else "not measured")
    counts = " / ".join(map(str, row.counts))
    return f"| {' | '.join([escape(label), *greedy, *sampled, counts])} |"


def _cells(row: Row, shown: Figure, missing: str) -> list[str]:
    """Before, after and change."""
    scale, digits, unit = (100, 1, " %") if row.is_share else (1, 3, "")

    def cell(interval: Interval | None, sign: str = "", unit: str = unit) -> str:
        if interval is None:
            return "not measured"
        low, mean, high = (
            f"{scale * value:{sign}.{digits}f}" for value in (interval.low, interval.mean, interval.high)
        )
        return f"{mean}{unit} ({low} to {high})"

    if not shown.phases:
        return [missing, "", ""]
    change = cell(shown.difference, "+", " points" if row.is_share else "") if shown.difference else ""
    return [cell(shown.before), cell(shown.after), change]


def _training(recipe: Mapping[str, Any], run: RunFiles | None) -> str:
    def found(section: str, *names: str) -> str:
        values = recipe.get(section) if isinstance(recipe.get(section), Mapping) else {}
        assert isinstance(values, Mapping)
        return ", ".join(f"{name} {_words(values[name])}" for name in names if values.get(name) is not None)

    rewards = recipe.get("rewards")
    scorers = [r.get("name") or r.get("scorer") for r in rewards or [] if isinstance(r, Mapping)]
    facts = {
        "scorers": ", ".join(f"{Path(str(name)).name}" for name in scorers),
        "prompts": found("data", "kind", "tags", "exclude_tags"),
        "schedule": found("algorithm", "schedule", "gain", "beta", "image_beta"),
        "groups": found("rollout", "num_prompts", "branch", "rounds"),
        "optimiser": found("training", "max_steps", "learning_rate", "seed"),
        "adapter": found("lora", "rank", "rank_generation", "alpha", "branches"),
    }
    if run is not None and run.metrics.rows:
        facts["steps run"] = f"{run.metrics.rows[-1]['step']}"
        facts["changed when it was resumed"] = ", ".join(map(str, run.changes))
    lines = [f"- {name}: {escape(text)}" for name, text in facts.items() if text]
    whole = "Every setting stands in `recipe.resolved.yaml`." if recipe else "No recipe lay beside the adapter."
    return "\n".join([*lines, "", whole]) if lines else whole


def _added_up(made_of: Sequence[str]) -> str:
    parts = [f"- {escape(part)}" for part in made_of]
    return "\n".join(["It was not trained as it is: adapters that were trained apart were added up.", "", *parts])


def _words(value: Any) -> str:
    return ", ".join(f"{name} {of}" for name, of in value.items()) if isinstance(value, Mapping) else str(value)


def _pictures(run: RunFiles, folder: Path) -> list[str]:
    """Strips of the last evaluation, two random and one best and worst, so that nobody sees the best alone."""
    shown: list[str] = []
    for row in _chosen(run.trajectories.rows):
        try:
            seen = load_trajectory(row, run.images)
        except NOT_A_TRAJECTORY:
            continue
        if any(this.pixels is None for this in seen.rounds):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{len(shown) + 1}.png"
        strip(seen).save(folder / name)
        shown.append(f"{_caption(row, seen)}\n\n![{escape(seen.prompt)}]({PICTURES}/{name})")
    return shown


def _chosen(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    after = [row for row in rows if row.get("phase") == "after"] or list(rows)
    last = [row for row in after if row["step"] == max(r["step"] for r in after)]
    by_kind = {kind: [row for row in last if row.get("kept_as") == kind] for kind in ("random", "best", "worst")}
    return [*by_kind["random"][:2], *by_kind["best"][:1], *by_kind["worst"][:1]][:_MOST_PICTURES]


def _caption(row: Mapping[str, Any], seen: SeenTrajectory) -> str:
    scores = [this.score for this in seen.rounds]
    told = " → ".join("no score" if score is None else f"{score:.2f}" for score in scores)
    return f"{str(row['kept_as']).capitalize()} of step {row['step']}, scores {told}:"
