"""Files and folders that a recipe names: where they are looked for, and why none can have a name."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path as FilePath
from typing import Any

from r3_rl import registered
from r3_rl.recipe.tree import Path, text_problem, unfilled

_PACKAGE = FilePath(__file__).resolve().parents[1]
READ: tuple[Path, ...] = (
    ("data", "path"), ("data", "questions"), ("model", "path"), ("pretrain", "start"), ("eval", "scorers"),
    ("lora", "start"),
)  # fmt: skip
"""Settings that name a file or folder to be read; a relative one is looked for beside the recipe that names it."""
FUNCTIONS: dict[Path, str] = {
    ("algorithm", "text_loss"): registered.LOSSES,
    ("algorithm", "image_loss"): registered.LOSSES,
    ("balance", "aggregator"): registered.AGGREGATORS,
}
"""Settings that name a function, of ours or the user's, and where ours are registered."""
WRITTEN: tuple[Path, ...] = (("training", "output_dir"), ("training", "score_cache"))
"""Settings that name a folder to be written; a relative one is made in the working directory."""


def shipped_folder() -> FilePath:
    """Folder of the shipped recipes: the checkout's `recipes/` where the package runs from one, else the wheel's."""
    checkout = _PACKAGE.parent / "recipes"
    return checkout if (_PACKAGE.parent / "pyproject.toml").is_file() and checkout.is_dir() else _PACKAGE / "recipes"


def is_shipped(file: FilePath) -> bool:
    """Whether a recipe's file is one of the shipped ones."""
    return file.resolve().parent == shipped_folder().resolve()


def paths_read(values: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """Where a recipe names what is read, and how; of a function's or a scorer's `file.py:name` the file."""
    yield from texts(values, READ)
    yield from ((place, path) for place, path in benches(values) if isinstance(path, str))
    for place, name in texts(values, FUNCTIONS):
        if (path := name.rpartition(":")[0]).endswith(".py"):
            yield place, path
    for section in ("rewards", "eval_rewards"):
        listed = values.get(section)
        for index, reward in enumerate(listed if isinstance(listed, list) else []):
            path = str(reward.get("scorer")).rpartition(":")[0] if isinstance(reward, dict) else ""
            if path.endswith(".py"):
                yield (section, index, "scorer"), path


def paths_written(values: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """Where a recipe names folders that are written, and how."""
    yield from texts(values, WRITTEN)


def benches(values: dict[str, Any]) -> Iterator[tuple[Path, Any]]:
    """Where a recipe names the benches that it is measured by, and what each is to read."""
    section = values.get("eval")
    listed = section.get("benches") if isinstance(section, dict) else None
    for name, path in listed.items() if isinstance(listed, dict) else ():
        yield ("eval", "benches", str(name)), path


def texts(values: dict[str, Any], places: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """What a recipe says at these places (section, key), where it says a text."""
    for section, key in places:
        below = values.get(str(section))
        if isinstance(below, dict) and isinstance(path := below.get(key), str):
            yield (section, key), path


def holder(values: Any, where: Path) -> Any:
    """The mapping or list that holds the value at the path."""
    for part in where[:-1]:
        values = values[part]
    return values


def name_problem(path: str, folder: FilePath | None = None) -> str:
    """Return why nothing can be looked up under this name, read from `folder` (the working directory), or "".

    >>> name_problem("runs/mine"), name_problem("a" * 300)
    ('', 'file name too long')
    """
    if why := text_problem(path):
        return why
    try:
        os.stat((folder or FilePath()) / FilePath(path).expanduser())
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except RuntimeError:  # ~name of somebody who has no home here
        return f"'{path.split('/')[0]}' is not a home folder here"
    except OSError as error:
        return str(error.strerror).lower()
    return ""


def anchored(path: str, named_in: FilePath | None, read: FilePath) -> FilePath:
    """Where a path leads. Nothing of the user's is stored beside a shipped recipe, so what is not there is looked for
    beside the recipe that extends it, then in the working directory.

    Args:
        path: as written, without a `name_problem`.
        named_in: the recipe that names it; None for an override.
        read: the recipe that is read, which may extend that one.
    """
    given = FilePath(path).expanduser()
    beside = ((named_in.parent if named_in else FilePath()) / given).resolve()
    if named_in is None or beside.exists() or not is_shipped(named_in):
        return beside
    homes = [FilePath()] if is_shipped(read) else [read.parent, FilePath()]
    places = [(home / given).resolve() for home in homes]
    return next((place for place in places if place.exists()), places[0])


def folder_problem(path: str) -> str:
    """Return why a folder cannot be made or written to, or "". A folder is made where it would be, and removed again.

    >>> folder_problem("runs")
    ''
    """
    if hint := unfilled(path):
        return f"'{path}' is no folder{hint}"
    if scheme := next((part for part in FilePath(path).parts if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+:", part)), ""):
        return f"an address that begins with '{scheme}//'; name a folder of this machine"
    if not path.isprintable():
        return "a name with characters that cannot be shown; name another folder"
    folder = FilePath(path)
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        return f"'{there}' is a file; name a folder"
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".r3-", dir=there))
    except OSError as error:
        verb = "be written to" if there == folder else "be made"
        return f"'{path}' cannot {verb} ({str(error.strerror).lower()}); name another folder"
    return ""
