"""Overrides, `a.b=c` -> a value of the tree."""

from __future__ import annotations

from typing import Any

from r3_rl.errors import one_line
from r3_rl.recipe.tree import Mistake, Path, Place, Tree, split
from r3_rl.recipe.yaml_text import MAX_DEPTH, parse_value


def override_value(tree: Tree, override: str) -> None:
    """Write `a.b=c` over the tree, the value read as YAML; a mistake is collected in it."""
    place = Place(f"override '{one_line(override, 60)}'")
    dotted, equals, text = override.partition("=")
    parts = split(dotted.strip())
    try:
        if not equals or "" in parts:
            raise ValueError("write key=value with a dotted key, for example training.seed=1")
        if len(parts) > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        _assign(tree, parts, parse_value(text))
    except ValueError as error:
        tree.mistakes.append(Mistake(place, (), str(error)))
        return
    for depth in range(1, len(parts) + 1):  # sections that only the override names stand there too
        tree.places.setdefault(parts[:depth], place)


def _assign(tree: Tree, parts: Path, value: Any) -> None:
    here: Any = tree.values
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(here, list):
            if not isinstance(part, int) or part >= len(here):
                at = ".".join(map(str, parts[:depth]))
                fix = f"give a position from 0 to {len(here) - 1}" if here else f"write {at}=[...]"
                raise ValueError(f"{at} is a list of {len(here)}; {fix}")
        elif isinstance(here, dict):
            part = str(part)
            if not last and here.get(part) is None:
                here[part] = {}
        else:
            raise ValueError(f"{'.'.join(map(str, parts[:depth]))} is a single value and has nothing below it")
        if last:
            tree.forget(parts, here.get(part) if isinstance(here, dict) else here[part])
            here[part] = value
        else:
            here = here[part]
