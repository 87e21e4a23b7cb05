"""Recipe files: find, read with `extends` and overrides, check, write. All mistakes are reported at once, by line."""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from r3_rl.errors import RecipeError
from r3_rl.policy.hub import is_hub_id
from r3_rl.recipe import Recipe
from r3_rl.recipe.tree import Mistake, Path, Place, Tree, override_value, parse_tree, scalar_spans
from r3_rl.recipe.wording import mistakes_of
from r3_rl.recipe_checks import misfits, pointed_to

_PACKAGE = FilePath(__file__).resolve().parent
PATHS = (("data", "path"), ("model", "path"), ("pretrain", "start"))
"""Settings that name a file or folder, read from the folder of the recipe that names them."""


def shipped_folder() -> FilePath:
    """Folder of the shipped recipes: the checkout's `recipes/` where the package runs from one, else the wheel's."""
    checkout = _PACKAGE.parent / "recipes"
    return checkout if (_PACKAGE.parent / "pyproject.toml").is_file() and checkout.is_dir() else _PACKAGE / "recipes"


def shipped_recipes() -> dict[str, FilePath]:
    """Shipped recipes by name, in alphabetical order."""
    return {file.stem: file for file in sorted(shipped_folder().glob("*.yaml"))}


def find_recipe(name: str) -> FilePath:
    """The file of a recipe.

    Args:
        name: path of a file, or name of a shipped recipe.

    Raises:
        RecipeError: neither a file nor a shipped recipe; the message names the closest ones.

    >>> find_recipe("shapes_r3").name
    'shapes_r3.yaml'
    """
    file, shipped = FilePath(name), shipped_recipes()
    if file.is_file():
        return file
    if name in shipped:
        return shipped[name]
    if file.is_dir():
        raise RecipeError(f"{name}: a folder; a recipe is a YAML file", hint=f"shipped recipes: {', '.join(shipped)}")
    beside = [str(path) for path in file.parent.glob("*.yaml")] if file.parent.is_dir() else []
    close = difflib.get_close_matches(name, [*shipped, *beside], n=1, cutoff=0.6)
    close = close or difflib.get_close_matches(file.stem, list(shipped), n=1, cutoff=0.6)
    hint = f"did you mean '{close[0]}'?" if close else f"shipped recipes: {', '.join(shipped)}"
    raise RecipeError(f"{name}: no such file and no shipped recipe", hint=hint)


def load_recipe(path_or_name: str | FilePath, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path_or_name: a YAML file or the name of a shipped recipe.
        overrides: `a.b=c`, the value read as YAML; list items by position, `rewards.0.weight=0.5`.

    Raises:
        RecipeError: one line for each mistake, `file:line: path: message`.

    >>> load_recipe("shapes_r3", ["training.seed=7", "rollout.draft.size=[36, 36]"]).training.seed
    7
    """
    file = find_recipe(str(path_or_name))
    tree = _read(file, ())
    for override in overrides:
        override_value(tree, override)
    _anchor(tree, file)
    source = Place(str(file), 1)
    recipe = None
    try:
        recipe = Recipe.model_validate(tree.values)
        found = [*pointed_to(recipe.model_dump(mode="json")), *misfits(recipe)]
    except ValidationError as error:
        found = [*mistakes_of(error, incomplete=() in tree.unreadable), *pointed_to(tree.values)]
    mistakes = tree.mistakes + [
        Mistake(tree.place_of(path, source), path, message)
        for path, message in found
        if not any(wrong and path[: len(wrong)] == wrong for wrong in tree.unreadable)
    ]
    if recipe is None or mistakes:
        raise RecipeError("\n".join(map(str, sorted(set(mistakes), key=_order))))
    return recipe


def dump_resolved(recipe: Recipe) -> str:
    """The whole recipe with every default as YAML; loading it gives an equal recipe.

    >>> print(dump_resolved(load_recipe("shapes_r3")).splitlines()[0])
    version: 1
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    yaml.dump(recipe.model_dump(mode="json"), stream)
    return stream.getvalue()


def json_schema() -> dict[str, Any]:
    """JSON schema of a recipe file: the fields of `Recipe` and `extends`, with which `version` may be inherited.

    >>> "extends" in json_schema()["properties"]
    True
    """
    schema = Recipe.model_json_schema()
    about = "A shipped recipe, or a file beside this one, whose settings hold where this file is silent."
    schema["properties"]["extends"] = {"type": "string", "description": about}
    schema["anyOf"] = [{"required": schema.pop("required")}, {"required": ["extends"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def headline(file: FilePath) -> str:
    """What a recipe is for: the first comment of its file."""
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _order(mistake: Mistake) -> tuple[Any, ...]:
    return (mistake.place.line is None, mistake.place.source, mistake.place.line or 0, str(mistake))


def _read(file: FilePath, above: tuple[FilePath, ...]) -> Tree:
    source, real = str(file), file.resolve()
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "no UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise RecipeError(f"{source}: cannot be read: {reason}") from error
    tree = parse_tree(text, source)
    if "extends" not in tree.values:
        return tree
    place, base = tree.places.pop(("extends",)), tree.values.pop("extends")
    try:
        base_tree = _read(_base_file(base, file, (*above, real)), (*above, real))
    except RecipeError as error:
        tree.mistakes.append(Mistake(place, ("extends",), str(error)))
        tree.unreadable.add(())
        return tree
    base_tree.overlay(tree)
    return base_tree


def _base_file(base: Any, file: FilePath, above: tuple[FilePath, ...]) -> FilePath:
    if not isinstance(base, str):
        raise RecipeError("expected the name of a recipe or a file beside this one")
    beside = file.parent / base
    found = beside if beside.is_file() else find_recipe(base)
    if found.resolve() in above:
        raise RecipeError(f"'{base}' leads back to a recipe that extends it")
    return found


def _anchor(tree: Tree, file: FilePath) -> None:
    """Paths are read from the folder of the recipe that names them, in an override from the working directory."""
    for where, path in named_paths(tree.values):
        values, key = _holder(tree.values, where), where[-1]
        place = tree.place_of(where, Place(""))
        anchored = str(_anchored(path, FilePath(place.source) if place.line is not None else None, file))
        if where[-1] == "scorer":
            values[key] = f"{anchored}:{values[key].rpartition(':')[2]}"
        elif not (where[0] == "model" and is_hub_id(path) and not FilePath(anchored).is_dir()):
            values[key] = anchored


def named_paths(values: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """Where a recipe names files and folders, and how; of a scorer's `file.py:name` the file."""
    for section, key in PATHS:
        below = values.get(section)
        if isinstance(below, dict) and isinstance(path := below.get(key), str):
            yield (section, key), path
    for section in ("rewards", "eval_rewards"):
        listed = values.get(section)
        for index, reward in enumerate(listed if isinstance(listed, list) else []):
            path = str(reward.get("scorer")).rpartition(":")[0] if isinstance(reward, dict) else ""
            if path.endswith(".py"):
                yield (section, index, "scorer"), path


def _holder(values: Any, where: Path) -> Any:
    for part in where[:-1]:
        values = values[part]
    return values


def _anchored(path: str, named_in: FilePath | None, read: FilePath) -> FilePath:
    """Where a path leads. Nothing of the user's is stored beside a shipped recipe, so what is not there is looked for
    beside the recipe that extends it, then in the working directory.

    Args:
        path: as written.
        named_in: the recipe that names it; None for an override.
        read: the recipe that is read, which may extend that one.
    """
    given = FilePath(path).expanduser()
    beside = ((named_in.parent if named_in else FilePath()) / given).resolve()
    if named_in is None or beside.exists() or not _is_shipped(named_in):
        return beside
    homes = [FilePath()] if _is_shipped(read) else [read.parent, FilePath()]
    places = [(home / given).resolve() for home in homes]
    return next((place for place in places if place.exists()), places[0])


def _is_shipped(file: FilePath) -> bool:
    return file.resolve().parent == shipped_folder().resolve()


def copied(file: FilePath, folder: FilePath) -> str:
    """The text of a recipe as it has to read in another folder to be the same recipe.

    What is there and would not be found from `folder`, such as the recipe that it extends, a prompt file or a scorer's
    file, is named by its full path; everything else, comments too, stays as it was written.
    """
    text = file.read_text(encoding="utf-8")
    values = parse_tree(text, str(file)).values
    spans = scalar_spans(text)
    found = {where: (path, _anchored(path, file, file)) for where, path in named_paths(values)}
    if isinstance(base := values.get("extends"), str):
        found["extends",] = (base, _base_file(base, file, ()).resolve())
    for where in sorted(found, key=lambda where: -spans[where][0]):
        path, leads = found[where]
        if where == ("extends",):
            beside = folder / path
            same = leads == (beside if beside.is_file() else shipped_recipes().get(path, FilePath())).resolve()
        else:
            same = not leads.exists() or leads == (folder / FilePath(path).expanduser()).resolve()
        if not same:
            begin, end = spans[where]
            colon = _holder(values, where)[where[-1]][len(path) :]
            text = text[:begin] + json.dumps(f"{leads}{colon}", ensure_ascii=False) + text[end:]
    return text
