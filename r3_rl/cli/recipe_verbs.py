"""`r3 recipes`: the shipped recipes."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from r3_rl.errors import InputError

recipes = App(name="recipes", help="The shipped recipes: ls, show, copy.")


@recipes.command
def ls() -> None:
    """List the shipped recipes."""
    from r3_rl.recipe_io import headline, shipped_recipes

    files = shipped_recipes()
    width = max(map(len, files), default=0)
    for name, file in files.items():
        print(f"{name:{width}}  {headline(file)}")


@recipes.command
def show(recipe: str, /, *, resolved: bool = False) -> None:
    """Print a recipe as written, or with every default.

    Args:
        recipe: a YAML file or the name of a shipped recipe.
        resolved: print every setting, inherited and default ones too.
    """
    from r3_rl.recipe_io import dump_resolved, find_recipe, load_recipe

    print(dump_resolved(load_recipe(recipe)) if resolved else find_recipe(recipe).read_text(encoding="utf-8"), end="")


@recipes.command
def copy(recipe: str, /, to: str = ".") -> None:
    """Copy a recipe, to change it. What it names by a relative path, the copy names so that it is found.

    Args:
        recipe: name of a shipped recipe, or a YAML file.
        to: file or folder.
    """
    from r3_rl.recipe_io import copied, find_recipe

    source, target = find_recipe(recipe), Path(to)
    target = target / source.name if target.is_dir() else target
    if target.exists():
        raise InputError(f"{target}: already there", hint="name another file")
    if not target.parent.is_dir():
        raise InputError(f"{target}: no such folder '{target.parent}'")
    text = copied(source, target.parent)
    target.write_text(text, encoding="utf-8")
    verb = "pretrain" if "\npretrain:" in text else "train"
    print(f"{target}: run it with `r3 {verb} {target}`")
