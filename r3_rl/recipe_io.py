"""Recipe files: find, read with `extends` and overrides, check, write. All mistakes are reported at once, by line."""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from r3_rl.errors import RecipeError, one_line
from r3_rl.model_checks import with_sizes
from r3_rl.policy.hub import is_hub_id
from r3_rl.recipe import Recipe
from r3_rl.recipe.files import (
    FUNCTIONS,
    anchored,
    holder,
    name_problem,
    paths_read,
    paths_written,
    shipped_folder,
)
from r3_rl.recipe.overrides import override_value
from r3_rl.recipe.tree import Mistake, Path, Place, Tree
from r3_rl.recipe.wording import mistakes_of
from r3_rl.recipe.yaml_text import MAX_BYTES, parse_tree, scalar_spans
from r3_rl.recipe_checks import misfits, pointed_to

_MOST_MISTAKES = 20
_MOST_EXTENDED = 20
Check = Callable[[Recipe], Iterable[tuple[Path, str]]]
"""A check of a recipe: paths and what is wrong there."""
_ASK = "`r3 recipes ls` lists the shipped ones"


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
    if why := name_problem(name):
        raise RecipeError(f"{name}: {why}", hint=_ASK)
    file, shipped = FilePath(name).expanduser(), shipped_recipes()
    if file.is_file():
        return file
    if name in shipped:
        return shipped[name]
    if file.is_dir():
        raise RecipeError(f"{name}: a folder; a recipe is a YAML file", hint=_ASK)
    beside = [str(path) for path in file.parent.glob("*.yaml")] if file.parent.is_dir() else []
    close = difflib.get_close_matches(name, [*shipped, *beside], n=1, cutoff=0.6)
    close = close or difflib.get_close_matches(file.stem, list(shipped), n=1, cutoff=0.6)
    hint = f"did you mean '{close[0]}'?" if close else _ASK
    raise RecipeError(f"{name}: no such file and no shipped recipe", hint=hint)


def load_recipe(
    path_or_name: str | FilePath, overrides: Sequence[str] = (), *, further: Sequence[Check] = ()
) -> Recipe:
    """Read and check a recipe.

    Args:
        path_or_name: a YAML file or the name of a shipped recipe.
        overrides: `a.b=c`, the value read as YAML; list items by position, `rewards.0.weight=0.5`.
        further: checks of a recipe that is right so far; what they find is shown in its place like everything else.

    Raises:
        RecipeError: one line for each mistake, `file:line: path: message`; at most 20.

    >>> load_recipe("shapes_r3", ["training.seed=7", "rollout.draft.size=[36, 36]"]).training.seed
    7
    """
    file = find_recipe(str(path_or_name))
    tree = _read(file, ())
    for override in overrides:
        override_value(tree, override)
    _anchor(tree, file)
    recipe = None
    try:
        recipe = Recipe.model_validate(tree.values)
        found = [*pointed_to(recipe.model_dump(mode="json")), *misfits(recipe)]
    except ValidationError as error:
        found = [*mistakes_of(error, incomplete=() in tree.unreadable), *pointed_to(tree.values)]
    mistakes = _placed(found, tree, file)
    if recipe is not None and not mistakes:
        mistakes = _placed([one for check in further for one in check(recipe)], tree, file)
    if recipe is None or mistakes:
        lines = [*dict.fromkeys(map(str, sorted(mistakes, key=_order)))]
        more = [f"{one_line(str(file), 80)}: and more, shown once these are mended"] if lines[_MOST_MISTAKES:] else []
        raise RecipeError("\n".join(lines[:_MOST_MISTAKES] + more))
    return with_sizes(recipe)


def _placed(found: Iterable[tuple[Path, str]], tree: Tree, file: FilePath) -> list[Mistake]:
    """What the reading found and what the checks did, without what only follows from a value that was not read."""
    source = Place(str(file), 1)
    return tree.mistakes + [
        Mistake(tree.place_of(path, source), path, message)
        for path, message in found
        if not any(path[:end] in tree.unreadable for end in range(1, len(path) + 1))
    ]


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
    return (mistake.place.line is None, mistake.place.source, mistake.place.line or 0)


def _read(file: FilePath, above: tuple[FilePath, ...]) -> Tree:
    source, real = str(file), file.resolve()
    tree = parse_tree(_text_of(file), source)
    if tree.values and not {"extends", *Recipe.model_fields} & set(tree.values):
        # nothing of a file that is something else is repeated: it may not be for everybody who reads the message
        why = "not a recipe: none of its keys is one of a recipe's; begin with 'version: 1'"
        return Tree(mistakes=[Mistake(Place(source, 1), (), why)], unreadable={()})
    if "extends" not in tree.values:
        return tree
    place, base = tree.places.pop(("extends",)), tree.values.pop("extends")
    if ("extends",) in tree.unreadable:
        tree.unreadable.add(())
        return tree
    try:
        base_tree = _read(_base_file(base, file, (*above, real)), (*above, real))
    except RecipeError as error:
        tree.mistakes.append(Mistake(place, ("extends",), str(error)))
        tree.unreadable.add(())
        return tree
    base_tree.overlay(tree)
    return base_tree


def _text_of(file: FilePath) -> str:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{file}:1: not a recipe: larger than {MAX_BYTES // 1000} kB")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "no UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise RecipeError(f"{file}:1: cannot be read: {reason}") from error


def _base_file(base: Any, file: FilePath, above: tuple[FilePath, ...]) -> FilePath:
    if not isinstance(base, str):
        raise RecipeError("expected the name of a recipe or a file beside this one")
    if why := name_problem(base, file.parent):
        raise RecipeError(f"{base}: {why}", hint="name a recipe or a file beside this one")
    beside = file.parent / FilePath(base).expanduser()
    found = beside if beside.is_file() else find_recipe(base)
    if found.resolve() in above:
        raise RecipeError(f"'{base}' leads back to a recipe that extends it")
    if len(above) > _MOST_EXTENDED:
        raise RecipeError(f"more than {_MOST_EXTENDED} recipes extend one another", hint="join some of them")
    return found


def _anchor(tree: Tree, file: FilePath) -> None:
    """Paths are read from the folder of the recipe that names them, in an override from the working directory."""
    for where, path in paths_written(tree.values):
        if _can_be_named(tree, where, path, FilePath()):
            holder(tree.values, where)[where[-1]] = str(FilePath(path).expanduser()) if path else path
    for where, path in paths_read(tree.values):
        values, key = holder(tree.values, where), where[-1]
        place = tree.place_of(where, Place(""))
        named_in = FilePath(place.source) if place.line is not None else None
        if not _can_be_named(tree, where, path, named_in.parent if named_in else FilePath()):
            continue
        leads = str(anchored(path, named_in, file))
        if where[-1] == "scorer" or where in FUNCTIONS:
            values[key] = f"{leads}:{values[key].rpartition(':')[2]}"
        elif not (where[0] == "model" and is_hub_id(path) and not FilePath(leads).is_dir()):
            values[key] = leads


def _can_be_named(tree: Tree, where: Path, path: str, folder: FilePath) -> bool:
    """Whether a name can be looked up; one that cannot is a mistake, and what would look it up is spared it."""
    if not (why := name_problem(path, folder)):
        return True
    tree.mistakes.append(Mistake(tree.place_of(where, Place("")), where, f"'{path}': {why}"))
    tree.unreadable.add(where)
    holder(tree.values, where)[where[-1]] = None
    return False


def copied(file: FilePath, folder: FilePath) -> str:
    """The text of a recipe as it has to read in another folder to be the same recipe.

    What is there and would not be found from `folder`, such as the recipe that it extends, a prompt file or a scorer's
    file, is named by its full path; everything else, comments too, stays as it was written.
    """
    text = file.read_text(encoding="utf-8")
    values = parse_tree(text, str(file)).values
    spans = scalar_spans(text)
    found = {where: (path, anchored(path, file, file)) for where, path in paths_read(values)}
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
            colon = holder(values, where)[where[-1]][len(path) :]
            text = text[:begin] + json.dumps(f"{leads}{colon}", ensure_ascii=False) + text[end:]
    return text
