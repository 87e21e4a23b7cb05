"""What a recipe says about things outside it: files, scorers, the model that it names, its world, packages.

Nothing here loads a model or torch: sizes come from the model's JSON files, kinds of prompts from the world's table.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path as FilePath
from typing import Any

from r3_rl import registered
from r3_rl.errors import InputError, one_line
from r3_rl.importing import closest
from r3_rl.model_checks import model_problems
from r3_rl.policy.hub import is_hub_id
from r3_rl.recipe import Recipe
from r3_rl.recipe.files import FUNCTIONS, benches, folder_problem, name_problem, paths_written, texts
from r3_rl.recipe.learning import MOST_SCORERS
from r3_rl.recipe.pretraining import OF_THE_WORLD
from r3_rl.recipe.tree import Path, unfilled
from r3_rl.worlds.base import World, chosen_tags, find_world

_PER_WEIGHT = {
    "adamw_torch_8bit": ("torchao", "pip install torchao"),
    "adamw_8bit": ("bitsandbytes", "pip install bitsandbytes"),
    "paged_adamw_32bit": ("bitsandbytes", "pip install bitsandbytes"),
    "paged_adamw_8bit": ("bitsandbytes", "pip install bitsandbytes"),
}
_SOLVERS = {"upgrad": ("qpsolvers", "quadprog"), "dual_proj": ("qpsolvers", "quadprog"), "cagrad": ("cvxpy",)}
"""What torchjd's aggregators solve their problems with; it does not install these by itself."""
_OF_TORCHJD = ("pcgrad", "gradvac", "mgda", "aligned_mtl", "imtl_g", *_SOLVERS)
_TRACKERS = {"tensorboard": "pip install 'r3-rl[track]'", "wandb": "pip install wandb"}


def pointed_to(values: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """What a recipe points to: files, folders and scorers have to be there before anything starts.

    `values` may hold mistakes of their own, which are reported beside these: what is no text or list is passed over.
    """
    if isinstance(file := _below(values, "data").get("path"), str):
        yield from ((("data", "path"), message) for message in _lines_file(FilePath(file)))
    asked = _below(values, "data").get("questions")
    if isinstance(asked, str) and not FilePath(asked).expanduser().is_dir():
        yield from ((("data", "questions"), message) for message in _lines_file(FilePath(asked), "data.questions"))
    if isinstance(folder := _below(values, "model").get("path"), str) and not is_hub_id(folder):
        yield from ((("model", "path"), message) for message in _weights(folder, "model.path"))
    if isinstance(start := _below(values, "pretrain").get("start"), str):
        yield from ((("pretrain", "start"), message) for message in _weights(start, "pretrain.start"))
    if isinstance(start := _below(values, "lora").get("start"), str):
        yield from ((("lora", "start"), message) for message in _adapter(FilePath(start)))
    for where, path in benches(values):
        if why := _bench_problem(str(where[-1]), path):
            yield where, why
    if isinstance(scorers := _below(values, "eval").get("scorers"), str) and not FilePath(scorers).is_file():
        yield ("eval", "scorers"), f"no such file: '{scorers}'{unfilled(scorers)}"
    for where, folder in paths_written(values):
        if folder and (why := folder_problem(folder)):
            yield where, why
    for where, name in texts(values, FUNCTIONS):
        if why := _function_problem(FUNCTIONS[where], name):
            yield where, why
    for section in ("rewards", "eval_rewards"):
        listed = values.get(section)
        for index, reward in enumerate(listed[:MOST_SCORERS] if isinstance(listed, list) else []):
            scorer, params = _scorer_of(reward)
            if scorer:
                yield from (((section, index, "scorer"), message) for message in _scorer_problems(scorer, params))


def misfits(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """What a recipe that is right on its own asks of its model, its world or this installation in vain.

    Everything that the first draw, the first update or the first measurement would refuse, and that follows from the
    recipe: it has to be said before weights are loaded.
    """
    world = find_world(recipe.data.world) if recipe.data.world else None
    if world is not None:
        yield from _kind_problems(recipe, world)
    yield from _part_problems(recipe)
    yield from _package_problems(recipe)
    yield from model_problems(recipe, world)


def _kind_problems(recipe: Recipe, world: World[Any]) -> Iterator[tuple[Path, str]]:
    """Kinds of prompts that the recipe's world does not have, and settings of its examples that it does not know."""
    data, pretrain = recipe.data, recipe.pretrain
    for key in ("tags", "exclude_tags"):
        for tag in getattr(data, key) or ():
            if tag not in world.tags:
                yield ("data", key), _unknown(tag, world.tags)
    if not chosen_tags(world, data.tags, data.exclude_tags):
        yield ("data", "exclude_tags"), "no kind of prompt is left; leave out fewer"
    asked = {"answer_share": data.questions is None, "answer_own_share": True}
    for key, by_world in asked.items():
        if by_world and getattr(recipe.algorithm, key) > 0 and not world.question_kinds:
            yield ("algorithm", key), f"the world '{world.name}' asks no questions; set it to 0"
    if pretrain is None:
        return
    for key in ("prompt_weights", "draw_weights"):
        for tag in getattr(pretrain, key):
            if tag not in world.tags:
                yield ("pretrain", key, tag), _unknown(tag, world.tags)
    for key in OF_THE_WORLD:
        if key not in world.pretrain_keys and getattr(pretrain, key) != type(pretrain).model_fields[key].default:
            yield ("pretrain", key), f"the examples of the world '{world.name}' do not follow it; leave it out"


def _unknown(tag: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(tag, known, n=1, cutoff=0.6)
    hint = f"did you mean '{close[0]}'?" if close else f"kinds: {', '.join(known)}"
    return f"no kind of prompt is called '{tag}'; {hint}"


def _part_problems(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """Scorers that compare peers get whole groups, so a step has no more batches than prompts."""
    from r3_rl.scoring.base import info_of
    from r3_rl.scoring.registry import ScorerInputError, find_scorer

    parts, prompts = recipe.rollout.num_parts, recipe.rollout.num_prompts
    for reward in recipe.rewards if parts > prompts else ():
        try:
            compares = info_of(find_scorer(reward.scorer)).group_wise
        except (ScorerInputError, TypeError, ValueError):
            continue  # said where scorers are looked up
        if compares:
            yield (
                ("rollout", "num_parts"),
                f"'{reward.scorer}' compares peers, so {prompts} groups do not make {parts} batches; "
                f"use {prompts} or fewer",
            )


def _package_problems(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """Packages that settings of the trainer need; scorers are asked for theirs by `check_scorer`."""
    if recipe.pretrain is not None:
        return
    training = recipe.training
    wanted: list[tuple[Path, str, str]] = []
    if training.optim in _PER_WEIGHT:
        wanted.append((("training", "optim"), *_PER_WEIGHT[training.optim]))
    if training.deepspeed is not None:
        wanted.append((("training", "deepspeed"), "deepspeed", "pip install 'r3-rl[deepspeed]'"))
    if (aggregator := recipe.balance.aggregator) in _OF_TORCHJD:
        for package in ("torchjd", *_SOLVERS.get(aggregator, ())):
            wanted.append((("balance", "aggregator"), package, "pip install 'r3-rl[balance]'"))
    for index, tracker in enumerate(recipe.observe.trackers):
        wanted.append((("observe", "trackers", index), tracker, _TRACKERS[tracker]))
    lacking = {path: (package, install) for path, package, install in reversed(wanted) if find_spec(package) is None}
    for path, (package, install) in lacking.items():
        yield path, f"needs the package {package}; {install}"


def _function_problem(group: str, name: str) -> str:
    # a name that is not in a file is known without importing what it stands for
    if ":" not in name and name in registered.names(group):
        return ""
    try:
        registered.find(group, name)
    except InputError as error:
        return str(error)
    return ""


def _bench_problem(name: str, path: Any) -> str:
    """Of a bench that the run is measured by, before its files are opened."""
    worlds, ours = registered.names(registered.WORLDS), registered.BUILT_IN[registered.ITEM_BENCHES]
    known = (*worlds, *registered.names(registered.ITEM_BENCHES))
    if name not in known:
        return f"no bench is called '{one_line(name, 80)}'; {closest(name, known)}"
    if path is None:
        return f"it reads files; name them with eval.benches.{name}=PATH" if name in ours else ""
    if not isinstance(path, str):
        return ""  # said as a mistake of the schema
    if name in worlds:
        return f"the benches of a world read no files; write {name}: null"
    return "" if FilePath(path).exists() else f"no such file or folder: '{path}'{unfilled(path)}"


def _scorer_problems(scorer: str, params: dict[str, Any]) -> list[str]:
    # The registry knows what is installed; it is imported here since it is slow to.
    from r3_rl.scoring.registry import check_scorer

    if why := name_problem(f"{scorer}.py"):  # a name without a colon is also looked for as a file of that name
        return [f"'{scorer}': {why}"]
    return check_scorer(scorer, params)


def _scorer_of(reward: Any) -> tuple[str, dict[str, Any]]:
    """A reward's scorer and its parameters; no scorer where either is not what it should be."""
    scorer, params = (reward.get("scorer"), reward.get("params") or {}) if isinstance(reward, dict) else ("", {})
    return (scorer, params) if isinstance(scorer, str) and isinstance(params, dict) else ("", {})


def _below(values: dict[str, Any], section: str) -> dict[str, Any]:
    below = values.get(section)
    return below if isinstance(below, dict) else {}


def _weights(folder: str, setting: str) -> Iterator[str]:
    if not FilePath(folder).is_dir():
        yield f"no such folder: '{folder}'{unfilled(folder) or f'; name the weights with {setting}=FOLDER'}"


def _adapter(folder: FilePath) -> Iterator[str]:
    if not folder.is_dir():
        yield f"no such folder: '{folder}'{unfilled(str(folder)) or '; name a run or its adapter/'}"
        return
    found = next((p for p in (folder, folder / "adapter") if (p / "adapter_config.json").is_file()), None)
    if found is None:
        yield f"'{folder}' holds no adapter; name a run that is done, or its adapter/"
    elif (found / "routing.json").is_file():
        yield f"'{found}' is routed by task; `r3 export` writes plain adapters, one a task"


def _lines_file(file: FilePath, key: str = "data.path") -> Iterator[str]:
    if not file.is_file():
        yield f"no such file: '{file}'{unfilled(str(file)) or f'; name the file with {key}=FILE'}"
        return
    try:
        with file.open("rb") as lines:
            if not any(line.strip() for line in lines):
                yield f"'{file}' is empty; it needs one JSON object a line"
    except OSError as error:
        yield f"'{file}' cannot be read ({str(error.strerror).lower()}); name the file with {key}=FILE"
