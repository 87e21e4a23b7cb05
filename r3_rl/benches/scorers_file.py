"""The file of `--scorers`: for each bench the scorer that judges its images, as a recipe's `rewards` names it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r3_rl import registered
from r3_rl.errors import InputError
from r3_rl.importing import closest
from r3_rl.recipe.yaml_text import parse_tree

KEYS = ("scorer", "params", "timeout_s", "distances")


def read_scorers(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """Return scorers by bench.

    Raises:
        InputError: no such file, not YAML, an unknown bench or key; the line names the place.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--scorers {path}: cannot be read ({error})") from None
    tree = parse_tree(text, str(path))
    if tree.mistakes:
        raise InputError(str(tree.mistakes[0]))
    known = registered.names(registered.ITEM_BENCHES)
    for name, entry in tree.values.items():
        if name not in known:
            raise InputError(f"{path}: no bench '{name}'", hint=closest(str(name), known))
        if not isinstance(entry, Mapping) or not set(entry) <= set(KEYS):
            raise InputError(f"{path}: {name}: not a mapping of {', '.join(KEYS)}")
        for key in ("params", "distances"):
            if not isinstance(entry.get(key, {}), Mapping):
                raise InputError(f"{path}: {name}.{key}: not a mapping")
    return dict(tree.values)
