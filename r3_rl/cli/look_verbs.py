"""Verbs that say something about a recipe or this machine and start nothing."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from textwrap import wrap

from r3_rl.errors import MAX_LINE, InputError


def check(recipe: str, /, *overrides: str, processes: int = 1) -> None:
    """Check a recipe and say what a step of it is made of; nothing is loaded.

    Args:
        recipe: a YAML file or the name of a shipped recipe.
        overrides: settings to change, such as training.seed=1.
        processes: number of processes it will run on.
    """
    from r3_rl.cli.checked import checked_recipe
    from r3_rl.recipe import geometry

    if processes < 1:
        raise InputError(f"--processes {processes}: at least 1")
    with redirect_stdout(io.StringIO()):  # what a scorer's file prints when it is imported is not the answer
        checked = checked_recipe(recipe, overrides, processes=processes, figures=True)
        step = geometry(checked, processes)
    said = (line for text in (step, *checked.training.limits) for line in wrap(text, MAX_LINE, break_long_words=False))
    print(*said, "ok", sep="\n")


def schema() -> None:
    """Print the recipe's JSON schema, for editors that complete and check YAML."""
    import json

    from r3_rl.recipe_io import json_schema

    print(json.dumps(json_schema(), indent=2))


def doctor() -> None:
    """Say what this machine and installation can do: versions, speed, optional packages."""
    from r3_rl.doctor import doctor as examine

    examine()
