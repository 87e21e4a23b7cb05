"""Only a world's own folder, and its line in the registry, names it. Worlds of one implementation share the folder."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from r3_rl import registered

ROOT = Path(registered.__file__).parent
REGISTRY = Path(registered.__file__)
DOCUMENT = ROOT / "recipe" / "page.py"
"""The text of docs/recipes.md, whose examples are recipes of a world."""
NAMES = tuple(registered.BUILT_IN[registered.WORLDS])


def mentions(source: str, name: str) -> Iterator[str]:
    """Imports, identifiers and strings of code that name a world; prose (docstrings and comments) is free.

    A lone identifier such as `shapes` is what tensors have too: only `shapes_x`, `x_shapes` and `ShapesX` count.
    """
    tree = ast.parse(source)
    prose = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    named = re.compile(rf"{name}_|_{name}|{name.title()}[A-Z]")
    told = re.compile(rf"worlds[./]{name}\b|(?<![\w.]){name}(?:_\w+)?(?![\w.(])")
    for node in ast.walk(tree):
        words = [getattr(node, field, None) for field in ("id", "attr", "name", "arg", "asname")]
        if isinstance(node, ast.ImportFrom):
            words += [f"{node.module}."]
            if f".worlds.{name}." in f".{node.module}.":
                yield f"{node.lineno}: from {node.module}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (f"{node.lineno}: import {a.name}" for a in node.names if f"worlds.{name}" in a.name)
        yield from (f"{node.lineno}: {word}" for word in words if isinstance(word, str) and named.search(word))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield from (f"{node.lineno}: {found!r}" for found in told.findall(node.value))


@pytest.mark.parametrize("name", NAMES)
def test_no_code_outside_its_folder_names_a_world(name):
    room = registered.BUILT_IN[registered.WORLDS][name].split(".")[2]
    found = [
        f"{path.relative_to(ROOT.parent)}:{mention}"
        for path in sorted(ROOT.rglob("*.py"))
        if path not in (REGISTRY, DOCUMENT)
        and not {ROOT / "worlds" / room, ROOT / "rewards", ROOT / "recipes"} & set(path.parents)
        for mention in mentions(path.read_text(encoding="utf-8"), name)
    ]
    assert found == []


def test_the_registry_names_each_world_once():
    for name in NAMES:
        lines = [line for line in REGISTRY.read_text().splitlines() if f'"{name}"' in line]
        assert len(lines) == 1, lines


@pytest.mark.parametrize(
    "code",
    [
        "from r3_rl.worlds.shapes.data import ShapesStream",
        "import r3_rl.worlds.shapes.world",
        "from r3_rl.worlds import shapes_data",
        'kind = "shapes"',
        'if kind == "shapes": pass',
        'recipe = load_recipe("shapes_r3")',
        "def shapes_tags(): pass",
        "class ShapesBench: pass",
        'hint = "start from shapes_pretrain"',
    ],
)
def test_what_names_a_world_is_found(code):
    assert [*mentions(code, "shapes")]


@pytest.mark.parametrize(
    "code",
    ['"""The shapes world."""', "shapes = source.shapes()", "# shapes_r3", "for shape in shapes: shape = 1"],
)
def test_what_does_not_is_not(code):
    assert [*mentions(code, "shapes")] == []
