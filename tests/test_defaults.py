"""A default is written once, in the recipe's section: who owns the setting takes it from there."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from inspect import getmembers, isclass
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple

import pytest

import r3_rl.recipe as recipe
from r3_rl.recipe.base import Section

ROOM = Path(recipe.__file__).parent
OTHER_NAMES = {
    ("text_reward", "mode"): "format_mode",
    ("text_reward", "weight"): "format_weight",
    ("Drawing", "shift"): "timestep_shift",
    ("Drawing", "convention"): "sde",
    ("Panel", "aggregate"): "multi_objective_aggregation",
}
"""Keys that their owner calls otherwise."""
OTHER_THINGS = {
    ("BagelConfig", "timestep_shift"): "of the released weights' own file",
    ("TextSegment", "temperature"): "how a text was sampled",
    ("token_log_probs", "temperature"): "1 leaves logits alone",
    ("LoopBench", "tags"): "kinds that are measured",
    ("JudgeSettings", "seed"): "sent to a judge's server",
    ("serve", "timeout_s"): "of a server's own calls",
    ("backbone_of", "kind"): "of a folder of weights, not of an engine",
}
"""Equal to the default of a key of that name, which means something else."""


class Default(NamedTuple):
    """Of a dataclass's field, or of a function's argument."""

    owner: str
    name: str
    value: ast.expr
    is_field: bool


def sections() -> list[type[Section]]:
    """All of a recipe's."""
    modules = [importlib.import_module(f"r3_rl.recipe.{module.name}") for module in iter_modules([str(ROOM)])]
    found = dict.fromkeys(own for module in modules for _, own in getmembers(module, isclass))
    return [own for own in found if issubclass(own, Section)]


def defaults_in(source: str) -> Iterator[Default]:
    """Those of all classes and functions; what a method is told belongs to its class."""
    tree = ast.parse(source)
    owners = {id(child): node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for child in node.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None:
                    yield Default(node.name, line.target.id, line.value, True)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            owner = owners.get(id(node), node.name)
            placed = [*node.args.posonlyargs, *node.args.args]
            pairs = [*zip(placed[len(placed) - len(node.args.defaults) :], node.args.defaults, strict=True)]
            pairs += [(a, d) for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if d is not None]
            yield from (Default(owner, argument.arg, value, False) for argument, value in pairs)


def repeated(found: Default, keys: dict[str, list[Any]]) -> bool:
    """Whether a literal is the default of the key of that name. An argument that is 0, false or empty switches a part
    off, whatever the recipe's default is."""
    try:
        value = ast.literal_eval(found.value)
    except ValueError:
        return False
    name = OTHER_NAMES.get((found.owner, found.name), found.name)
    return (found.is_field or bool(value)) and any(type(k) is type(value) and k == value for k in keys.get(name, ()))


@pytest.fixture(scope="module")
def keys() -> dict[str, list[Any]]:
    """The defaults of the recipe's keys, by the keys' names in all sections."""
    found: dict[str, list[Any]] = {}
    for section in sections():
        for key, field in section.model_fields.items():
            found.setdefault(key, []).append(field.default)
    return found


@pytest.fixture(scope="module")
def written() -> list[Default]:
    """Every default of the toolkit outside the recipe."""
    files = [file for file in sorted(ROOM.parent.rglob("*.py")) if ROOM not in file.parents]
    assert len(files) > 100
    return [default for file in files for default in defaults_in(file.read_text())]


def test_every_default_is_the_recipes(written, keys):
    found = {(default.owner, default.name) for default in written if repeated(default, keys)}
    assert found - OTHER_THINGS.keys() == set(), "take it from the section: r3_rl.recipe.base.default"
    assert OTHER_THINGS.keys() - found == set(), "gone, take it off the list"


def test_a_default_is_that_of_its_own_key(written):
    taken = [d for d in written if isinstance(d.value, ast.Call) and ast.unparse(d.value.func) == "default"]
    assert len(taken) > 30
    for found in taken:
        assert found.value.args[1].value == OTHER_NAMES.get((found.owner, found.name), found.name)


def test_a_repeated_default_is_found(keys):
    source = "@dataclass\nclass Mine:\n    rank: int = 16\n    seed: int = 7\n    shift: float = {}\n"
    source += "def mine(a, num_sde_steps=2, *, beta=0.0, eta=0.5): ...\n"
    assert [d.name for d in defaults_in(source) if repeated(d, keys)] == ["rank", "num_sde_steps"]
