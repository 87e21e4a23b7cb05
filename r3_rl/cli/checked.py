"""A recipe as the verbs take it: read and checked, together with the prompts and what the scorers want of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path as FilePath
from typing import Any

from r3_rl.recipe import Recipe
from r3_rl.recipe.tree import Path

_LARGEST_VOCABULARY = 1_000_000
"""Bytes of a tokenizer's file; one of words is small, and one of word pieces spells whatever it does not know."""


def checked_recipe(
    path_or_name: str, overrides: Sequence[str] = (), *, processes: int = 1, figures: bool = False
) -> Recipe:
    """Read a recipe and its prompt file, and check what they and the number of processes make of each other.

    Args:
        path_or_name, overrides: as `load_recipe` takes them.
        processes: that the run will have.
        figures: whether `eval.metric` is looked up among those of its benches, which load torch: `prepare_process`
            comes first.

    Raises:
        RecipeError: what `load_recipe` raises, or a scorer that would give no score at all.
        DataError: the prompt file is not what the recipe says, or has none of the kinds that it asks for.
    """
    from r3_rl.recipe import misfit
    from r3_rl.recipe_io import load_recipe

    of_processes, of_benches = partial(misfit, world_size=processes), [_metric] if figures else []
    return load_recipe(path_or_name, overrides, further=[of_processes, _lacking, _questions, *of_benches])


def prompt_columns(recipe: Recipe) -> list[str]:
    """Columns that at least one of the recipe's prompts has."""
    data = recipe.data
    if data.world:
        from r3_rl.worlds.base import find_world

        prompts = find_world(data.world).prompts(1, split="train", seed=0)
        rows: Iterable[Mapping[str, Any]] = [prompt.columns for prompt in prompts]
    else:
        from r3_rl.worlds.files.load import load_prompts

        assert data.path is not None, "the recipe asks for the path of every other kind"
        found = load_prompts(
            data.kind,
            data.path,
            prompt_key=data.prompt_key,
            tags=data.tags,
            exclude_tags=data.exclude_tags,
            unknown_words=_vocabulary(recipe),
        )
        rows = [prompt.columns for prompt in found]
    return list(dict.fromkeys(name for row in rows for name, value in row.items() if value is not None))


def _vocabulary(recipe: Recipe) -> Callable[[str], Sequence[str]]:
    """Tells which words of a text the recipe's model does not know, if its vocabulary is one of words."""
    from r3_rl.policy.words import unknown_words
    from r3_rl.worlds.base import find_world

    folder = FilePath(recipe.model.path) if recipe.model.path else find_world().weights_folder(recipe.model.base)
    file = folder / "tokenizer.json"
    if not file.is_file() or file.stat().st_size > _LARGEST_VOCABULARY:
        return lambda text: ()
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # tokenizers raises nothing narrower; the model's own checks say what is wrong with its files
        return lambda text: ()
    return partial(unknown_words, tokenizer)


def _lacking(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """Scorers that need columns which no prompt has."""
    if recipe.pretrain is not None:
        return
    from r3_rl.scoring.base import declared_info
    from r3_rl.scoring.registry import find_scorer, short_name
    from r3_rl.types import STANDARD_ARGUMENTS

    columns = prompt_columns(recipe)
    have = {*columns, *STANDARD_ARGUMENTS}
    for section in ("rewards", "eval_rewards"):
        for index, reward in enumerate(getattr(recipe, section)):
            found = find_scorer(reward.scorer)
            wanted = [*declared_info(found, reward.params).needs, *_demanded(found, reward.params)]
            if missing := [name for name in dict.fromkeys(wanted) if name not in have]:
                yield (
                    (section, index, "scorer"),
                    f"'{short_name(reward.scorer)}' needs the column '{missing[0]}', which no prompt of the data "
                    f"'{recipe.data.kind}' has (only: {', '.join(columns) or 'none'}); "
                    "use others or another scorer",
                )


def _questions(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """Reads the file of questions, which raises what is wrong in it by its own lines."""
    if recipe.data.questions is not None:
        from r3_rl.worlds.files.questions import load_questions

        load_questions(recipe.data.questions, unknown_words=_vocabulary(recipe))
    yield from ()


def _metric(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """A figure that no bench of the recipe has; nothing is loaded for a recipe that names none."""
    if recipe.eval.metric is None and recipe.eval.wanted is None:
        return
    from r3_rl.benches.metric import metric_problem

    if why := metric_problem(recipe):
        yield ("eval", "metric"), why


def _demanded(found: Any, params: Mapping[str, Any]) -> Iterator[str]:
    """Arguments without a default that a scorer takes of a batch; a factory's are not known before it is called."""
    from r3_rl.scoring.registry import is_factory

    if is_factory(found):
        return
    call = found.__call__ if inspect.isclass(found) else found
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for name, parameter in inspect.signature(call).parameters.items():
        if name != "self" and parameter.kind in kinds and parameter.default is parameter.empty and name not in params:
            yield name
