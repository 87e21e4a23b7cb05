"""Drawing benchmarks that a scorer judges: GenEval, GenEval++, TIIF, DPG; each with its official aggregate.

Scorers come by name, the same as in a recipe. `--scorers FILE` sets their parameters (weights, judges) by bench:

    geneval: {params: {detector: /weights/mask2former}}
    tiif: {params: {judge: {base_urls: ["http://127.0.0.1:8000/v1"], model: qwen}}}
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from r3_rl.benches.base import Figure, ItemBench, Request, Sums, batch_of
from r3_rl.benches.drawing import DrawingBench
from r3_rl.benches.published import DPG, GENEVAL, GENEVAL_PLUS, TIIF, Published, given_path
from r3_rl.errors import DataError, InputError, R3Error
from r3_rl.evaluate.gallery import by_panel
from r3_rl.recipe import RewardSection
from r3_rl.scoring.panel import Panel, ScorerSpec
from r3_rl.scoring.registry import check_scorer, load_scorer
from r3_rl.types import Prompt, Trajectory
from r3_rl.worlds.files.load import load_prompts

OFFICIAL = "As published"


class Judge:
    """A scorer as a judge of trajectories. It is loaded when it is first asked: a finished evaluation loads none.

    Args:
        reward: scorer and parameters.
        name: of the bench.

    Raises:
        InputError: a scorer that does not exist, or parameters that it does not take.
    """

    def __init__(self, reward: RewardSection, name: str) -> None:
        if problems := check_scorer(reward.scorer, reward.params):
            raise InputError(f"bench '{name}': {problems[0]}", hint="set its parameters in the file of --scorers")
        self._reward, self._name = reward, name
        self._spec: ScorerSpec | None = None

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        """Return the trajectories with a verdict for every image.

        Raises:
            InputError: a scorer that cannot be loaded, such as one whose weights are missing.
            ScorerError: more than a quarter of the scores are missing; the line says why.
        """
        reward = self._reward
        if self._spec is None:
            try:
                scorer = load_scorer(reward.scorer, reward.params, Path.cwd())
            except R3Error as error:
                hint = f"{error.hint}; name it in the file of --scorers, under {self._name}.params"
                raise InputError(f"bench '{self._name}': {error.message}", hint=hint.removeprefix("; ")) from error
            self._spec = ScorerSpec(name=reward.scorer, scorer=scorer, params=reward.params, timeout_s=reward.timeout_s)
        with Panel([self._spec]) as panel:
            judged = by_panel(panel, counted=True)(trajectories)
            panel.metrics()  # raises if the scorer gave up
        return judged


def geneval(request: Request) -> list[ItemBench]:
    """Return GenEval's prompts; `path` is `evaluation_metadata.jsonl`. Four images a prompt; the score is the mean over
    tasks of the share of right images."""
    prompts = load_prompts("geneval", given_path(request, GENEVAL))
    return [_bench(request, GENEVAL, "GenEval", prompts, {"scorer": "geneval", "params": {"strict_weight": 1.0}})]


def geneval_plus(request: Request) -> list[ItemBench]:
    """Return GenEval++'s prompts; `path` is its JSON lines."""
    prompts = load_prompts("geneval", given_path(request, GENEVAL_PLUS))
    reward = {"scorer": "geneval_plus", "params": {"strict_weight": 1.0}}
    return [_bench(request, GENEVAL_PLUS, "GenEval++", prompts, reward, copies=1)]


def tiif(request: Request) -> list[ItemBench]:
    """Return TIIF-Bench's prompts, short and long; `path` is its JSON lines."""
    path = given_path(request, TIIF)
    found: list[ItemBench] = []
    for length in ("short", "long"):
        prompts = load_prompts("tiif", path, prompt_key=f"{length}_description")
        bench = _bench(request, TIIF, f"TIIF-Bench, {length}", prompts, {"scorer": "tiif"}, copies=1, graded=True)
        found.append(replace(bench, name=f"tiif.{length}"))
    return found


def dpg(request: Request) -> list[ItemBench]:
    """Return DPG-Bench's prompts; `path` is `dpg_bench.csv`. Four images a prompt; the score of an image is the share
    of its questions that are answered yes, and whose parents are."""
    prompts = dpg_prompts(given_path(request, DPG))
    return [_bench(request, DPG, "DPG-Bench", prompts, {"scorer": "dpg"}, graded=True)]


def _bench(
    request: Request,
    published: Published,
    title: str,
    prompts: Sequence[Prompt],
    reward: Mapping[str, Any],
    *,
    copies: int = 4,
    graded: bool = False,
) -> DrawingBench:
    chosen = request.scorers.get(published.name, {})
    params = (
        {**reward.get("params", {}), **chosen.get("params", {})} if "scorer" not in chosen else chosen.get("params", {})
    )
    section = RewardSection.model_validate({**reward, **chosen, "params": params})
    prompts = _limited(prompts, request.limit)
    return DrawingBench(
        name=published.name,
        title=title,
        prompts=prompts,
        verdicts=Judge(section, published.name),
        rounds=request.rounds,
        copies=copies,
        batch=batch_of(request),
        graded=graded,
        further=_official(title, prompts, request.rounds),
        facts={
            "images a prompt": str(copies),
            "judge": f"scorer {section.scorer} {_settings(section.params)}".strip(),
            "source": published.where,
        },
    )


def _limited(prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """At most so many prompts, of every kind in turn: a file begins with one kind."""
    if limit is None or limit >= len(prompts):
        return list(prompts)
    by_kind: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        by_kind.setdefault(str(prompt.columns.get("tag")), []).append(place)
    turns = sorted((turn, place) for places in by_kind.values() for turn, place in enumerate(places))
    return [prompts[place] for place in sorted(place for _, place in turns[:limit])]


def _settings(params: Mapping[str, Any]) -> str:
    """Of a scorer, in words: a judge by its model, weights by their names, not by their folders."""
    judge = params.get("judge")
    shown = {"model": judge["model"]} if isinstance(judge, Mapping) and "model" in judge else {}
    shown |= {
        k: Path(v).name if isinstance(v, str) else v for k, v in params.items() if not isinstance(v, Mapping | list)
    }
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _official(title: str, prompts: Sequence[Prompt], rounds: Sequence[int]) -> list[Figure]:
    """The mean over tasks, of the draft and of the last image."""
    tags = list(dict.fromkeys(str(prompt.columns["tag"]) for prompt in prompts if "tag" in prompt.columns))

    def overall(part: str, sums: Sums) -> np.ndarray:
        return np.asarray(np.mean([sums.mean(f"{part}/{tag}") for tag in tags], axis=0))

    words = {"draft": "drafts", "final": f"at most {rounds[-1]} rounds"} if rounds[-1] else {"draft": "drafts"}
    return [
        Figure(
            name=f"overall_{part}",
            label=f"{title} score, {said}",
            hint=f"mean over {len(tags)} kinds",
            group=OFFICIAL,
            formula=partial(overall, part),
            headline=True,
        )
        for part, said in words.items()
        if tags
    ]


def dpg_prompts(path: Path) -> list[Prompt]:
    """Read DPG-Bench's CSV: a line for each question of a prompt.

    Raises:
        DataError: a file that is something else; the line names the place.
    """
    found: dict[str, dict[str, Any]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            wanted = ("item_id", "text", "proposition_id", "dependency", "question_natural_language")
            if lacking := [name for name in wanted if name not in (reader.fieldnames or [])]:
                raise DataError(f"{path}:1: no column {', '.join(lacking)}", hint=DPG.how_to_get())
            for number, row in enumerate(reader, start=2):
                _add(found, row, f"{path}:{number}")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if not found:
        raise DataError(f"{path}: no prompt in it")
    return [Prompt(text=columns.pop("text"), columns=columns) for columns in found.values()]


def _add(found: dict[str, dict[str, Any]], row: Mapping[str, str], place: str) -> None:
    """A question to its prompt; parents become places among the prompt's questions."""
    try:
        number = int(row["proposition_id"])
        parents = [int(part) for part in row["dependency"].split(",") if part.strip() not in ("", "0")]
    except (TypeError, ValueError):
        raise DataError(f"{place}: proposition_id or dependency is not a number") from None
    item = found.setdefault(row["item_id"], {"text": row["text"], "tag": "all", "questions": [], "parents": []})
    item["questions"].append(row["question_natural_language"])
    item["parents"].append([parent - 1 for parent in parents])
    if number != len(item["questions"]) or not all(0 <= parent - 1 < number - 1 for parent in parents):
        raise DataError(f"{place}: question {number} of {row['item_id']} is out of order or has a later parent")
