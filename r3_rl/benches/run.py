"""`r3 eval`: what training did to drawing and to understanding, in one folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from r3_rl import joining, ranks, registered
from r3_rl.benches.base import ComparesSets, ItemBench, Request
from r3_rl.benches.page import write_page
from r3_rl.benches.resampling import Values, values_of
from r3_rl.benches.results import BenchResult, bench_result, distance_rows, document
from r3_rl.benches.scorers_file import read_scorers
from r3_rl.benches.subjects import MODEL, OTHER, TRAINED, Subjects, find_subjects
from r3_rl.benches.text import headline_lines, markdown
from r3_rl.benches.work import Batch, all_batches, kept_samples, measure, sample_of
from r3_rl.benches.world import world_benches
from r3_rl.errors import InputError, one_line
from r3_rl.evaluate.fixed_sets import digest
from r3_rl.importing import closest
from r3_rl.observe.environment import environment
from r3_rl.observe.lock import sole_writer
from r3_rl.observe.recorder import write_document
from r3_rl.recipe.base import default
from r3_rl.recipe.evaluating import EvalSection
from r3_rl.worlds.base import World, find_world

PLAN = "plan.json"
"""What an evaluation is: another one is not written into its folder."""
SAMPLES, TABLE = "samples.jsonl", "table"


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """What is measured."""

    benches: Sequence[str]
    """Names, each with `=PATH` where it reads files."""
    rounds: Sequence[int] = (0, 1, 2, 3)
    """Edit budgets that are reported; the largest one is run."""
    num_seeds: int = default(EvalSection, "num_seeds")
    limit: int | None = None
    """Most items of a set."""
    scorers: Path | None = default(EvalSection, "scorers")  # noqa: RUF009 - null in the section
    """YAML file with the scorers of benches, as `benches.judged` reads it."""


def evaluate(
    name: str | None, folder: Path, settings: EvalSettings, *, against: str | None = None
) -> list[BenchResult]:
    """Measure a model and its base, and write tables, samples, images and a page.

    A folder that holds an unfinished evaluation of the same models and items goes on; its finished samples are kept.
    In processes that `torchrun` started the batches are shared.

    Args:
        name: a run, an adapter or a model, as `find_subjects` takes it.
        folder: of the output.
        settings: benches, rounds, seeds.
        against: another run, adapter or model, compared on the same items.

    Raises:
        InputError: an unknown bench, missing files, or a folder that holds another evaluation.
    """
    check_benches(settings)
    joining.join()
    try:
        subjects = find_subjects(name, against=against)
        benches = find_benches(settings, subjects)
        with ExitStack() as held:
            ranks.of_first(lambda: _open(folder, held))
            ranks.of_first(lambda: _agree(folder, _plan(benches, subjects, settings)))
            todo = all_batches(benches, subjects.models, settings.num_seeds)
            measure(todo, folder, rounds=max(settings.rounds), title=folder.name)
            if ranks.rank():
                return []
            return write_results(folder, benches, subjects, settings, todo)
    finally:
        joining.leave()


def check_benches(settings: EvalSettings) -> None:
    """Raise InputError for a bench that does not exist and for files that are missing or broken; no model is loaded.

    Files are read again when the model is there: seconds, where loading a large model for a broken file costs minutes.
    """
    known = (*registered.names(registered.WORLDS), *registered.names(registered.ITEM_BENCHES))
    reading = []
    for asked in settings.benches:
        name, given, _ = asked.partition("=")
        if name not in known:
            raise InputError(f"no bench is called '{one_line(name, 80)}'", hint=closest(name, known))
        if given and name in registered.names(registered.WORLDS):
            raise InputError(f"bench '{name}' is the world's own and reads no file", hint=f"write it as {name}")
        # a stranger's without a file may want a world, which only a loaded model has
        if given or name in registered.BUILT_IN[registered.ITEM_BENCHES]:
            reading.append(asked)
    find_benches(replace(settings, benches=reading), None)


def find_benches(settings: EvalSettings, subjects: Subjects | None) -> list[ItemBench]:
    """Return the benches that are asked for: a world's name stands for its own.

    Args:
        settings: of the evaluation.
        subjects: what is measured; None for a look at benches that read files, before anything is loaded.

    Raises:
        InputError: missing or broken files, or the same bench twice.
    """
    found: list[ItemBench] = []
    scorers = {} if settings.scorers is None else read_scorers(settings.scorers)
    for asked in settings.benches:
        name, given, path = asked.partition("=")
        request = Request(
            name=name,
            path=Path(path) if given else None,
            tags=subjects.tags if subjects else None,
            world=subjects.world if subjects else None,
            rounds=sorted(set(settings.rounds)),
            limit=settings.limit,
            scorers=scorers,
        )
        if subjects and name in registered.names(registered.WORLDS):
            found += world_benches(request, _spoken(name, subjects))
        else:
            found += registered.find(registered.ITEM_BENCHES, name)(request)
    for bench in found:
        if sum(other.name == bench.name for other in found) > 1:
            raise InputError(f"the bench '{bench.name}' is asked for twice", hint="name each once")
    return found


def _spoken(name: str, subjects: Subjects) -> World[Any]:
    """A world, if the models speak its words: to others its prompts and images are nothing."""
    world, speaks = find_world(name), subjects.world
    if speaks is None or speaks.name != world.name:
        whose = "of no world" if speaks is None else f"of the world '{speaks.name}'"
        raise InputError(f"bench '{name}': the model speaks the words {whose}", hint="name a bench that reads files")
    return world


def _open(folder: Path, held: ExitStack) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}", hint="choose another folder") from error
    held.enter_context(sole_writer(folder))


def _plan(benches: Iterable[ItemBench], subjects: Subjects, settings: EvalSettings) -> dict[str, Any]:
    """Everything that a sample follows from, the seed aside."""
    return {
        "models": {s.key: s.marks for s in subjects.models},
        "loops": {s.key: digest([repr(s.loaded.loop), s.dtype]) for s in subjects.models},
        "rounds": sorted(set(settings.rounds)),
        "benches": {bench.name: {"items": digest(bench.items), **bench.facts} for bench in benches},
    }


def _agree(folder: Path, plan: Mapping[str, Any]) -> None:
    """Refuse a folder of another evaluation; benches may join."""
    file = folder / PLAN
    kept: dict[str, Any] = {}
    if file.is_file():
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{file}: not JSON ({error})", hint="choose another folder with --out") from None
    for key in ("models", "loops", "rounds"):
        if key in kept and kept[key] != plan[key]:
            raise InputError(f"{folder} holds an evaluation with other {key}", hint="choose another folder with --out")
    for name, facts in plan["benches"].items():
        if kept.get("benches", {}).get(name, facts) != facts:
            raise InputError(
                f"{folder} holds '{name}' on other items or settings", hint="choose another folder with --out"
            )
    write_document(file, {**plan, "benches": {**kept.get("benches", {}), **plan["benches"]}})


def write_results(
    folder: Path, benches: Sequence[ItemBench], subjects: Subjects, settings: EvalSettings, todo: Sequence[Batch]
) -> list[BenchResult]:
    """Write the samples in order, the tables and the page, when all batches are finished."""
    _join_samples(folder, todo)
    results = [_result(folder, bench, subjects, todo) for bench in benches]
    models = {s.key: s.source for s in subjects.models}
    policy = subjects.first.policy
    facts = _facts(subjects, settings)
    marks = {s.key: s.marks for s in subjects.models}
    write_document(folder / f"{TABLE}.json", document(results, {"models": models, "weights": marks, **facts}))
    write_document(folder / f"{TABLE}.md", markdown(results, models, facts))
    device = str(next(policy.module.parameters()).device)
    write_document(folder / "environment.json", environment(dtype=subjects.models[-1].dtype, device=device))
    title = " against ".join(s.short_name for s in subjects.models if s.key in (TRAINED, MODEL, OTHER))
    write_page(folder, results, title=title, models=models, comparisons=subjects.comparisons, facts=facts)
    for line in headline_lines(results, subjects.comparisons):
        print(line)
    print(f"tables, samples and images: {folder / 'index.html'}", flush=True)
    return results


def _facts(subjects: Subjects, settings: EvalSettings) -> dict[str, str]:
    """What figures depend on and a reader has to know."""
    formats = {s.key: s.dtype for s in subjects.models}
    same = len(set(formats.values())) == 1
    loop = subjects.first.loop
    draft, plan = loop.draft.drawing, loop.plan
    return {
        "rounds": ", ".join(map(str, sorted(set(settings.rounds)))),
        "seeds": str(settings.num_seeds),
        "drawing": f"{draft.num_steps} steps without noise, guidance {draft.guidance.text:g} and "
        f"{draft.guidance.image:g}, {draft.size[1]} x {draft.size[0]} pixels",
        "sampled texts": "no plans" if plan is None else f"temperature {plan.temperature:g}, top-p {plan.top_p:g}",
        "number format": subjects.models[0].dtype if same else _listed(formats),
    }


def _listed(pairs: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in pairs.items())


def _join_samples(folder: Path, todo: Sequence[Batch]) -> None:
    """All samples in one file, in the order of the batches."""
    aside = folder / f".{SAMPLES}.partial"
    with aside.open("wb") as stream:
        for batch in todo:
            stream.write((folder / batch.file).read_bytes())
    aside.replace(folder / SAMPLES)


def _result(folder: Path, bench: ItemBench, subjects: Subjects, todo: Sequence[Batch]) -> BenchResult:
    """The rows of one bench, those of whole sets of images last."""
    result = bench_result(bench, measured_values(folder, bench, todo), subjects.comparisons)
    if not isinstance(bench, ComparesSets):
        return result
    drawn: dict[tuple[str, str], list[dict[str, Path]]] = {}
    for batch in todo:
        if batch.bench is bench and batch.seed == 0:
            rows = [row["images"] for row in kept_samples(folder, batch)]
            these = [{name: folder / place for name, place in images.items()} for images in rows]
            drawn.setdefault((batch.subject.key, batch.decoding), []).extend(these)
    found = {key: bench.distances(these) for key, these in drawn.items()}
    return replace(result, rows=[*result.rows, *distance_rows(found, len(bench.items), subjects.comparisons)])


def measured_values(folder: Path, bench: ItemBench, todo: Sequence[Batch]) -> dict[tuple[str, str], Values]:
    """Return the values of a bench by model and decoding, from finished batches."""
    grouped: dict[tuple[str, str], list[Batch]] = {}
    for batch in todo:
        if batch.bench is bench:
            grouped.setdefault((batch.subject.key, batch.decoding), []).append(batch)
    return {
        key: values_of((row["seed"], sample_of(row)) for batch in these for row in kept_samples(folder, batch))
        for key, these in grouped.items()
    }
