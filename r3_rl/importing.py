"""Code of the user's: what `package.module:name` and `./file.py:name` stand for.

Whatever goes wrong on the way, a module that raises included, becomes one line that says what was asked for.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from r3_rl.errors import InputError, one_line


def imported(what: str, name: str, folder: str | Path = ".") -> Any:
    """Return the function or class that a name stands for.

    Args:
        what: what it is to the user, for errors, such as `loss './mine.py:clip'`.
        name: `package.module:name`, or `file.py:name` with the path relative to `folder`.
        folder: of the file; modules are looked for here and in the working directory too.

    Raises:
        InputError: no such file, module or name, a module that fails to import, or something that cannot be called.

    >>> imported("loss", "r3_rl.errors:one_line").__name__
    'one_line'
    """
    place, _, attribute = name.rpartition(":")
    folder = Path(folder)
    if place.endswith(".py") or "/" in place:
        module = import_file(what, folder / Path(place).expanduser())
    else:
        module = import_module(what, place, folder)
    if not hasattr(module, attribute):
        raise InputError(f"{what}: no '{attribute}' in it", hint=closest(attribute, _public(module)))
    found = getattr(module, attribute)
    if not callable(found):
        raise InputError(f"{what}: '{attribute}' is a {type(found).__name__}, not a function or class")
    return found


def import_module(what: str, name: str, folder: Path) -> ModuleType:
    """Import a module by its dotted name, from `folder` and the working directory too. Raises InputError."""
    try:
        # `python -m` looks into the working folder and `r3` does not: one name should mean one thing.
        with _found_in(folder, Path.cwd()):
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise InputError(f"{what}: '{one_line(name, 80)}' fails to import: {reason(error)}") from error


def import_file(what: str, path: Path) -> ModuleType:
    """Run a file once and again when it has changed. Raises InputError."""
    if not path.is_file():
        near = sorted(file.name for file in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = closest(path.name, near) if near else "the path is relative to the recipe's folder"
        raise InputError(f"{what}: no file {path}", hint=hint)
    # Checking and then loading a recipe runs the file once; a changed file is read again.
    stamp = hashlib.sha256(f"{path.resolve()}:{path.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    name = f"r3_{path.stem}_{stamp}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{what}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look their own module up
    try:
        # modules beside the file, as for a script
        with _found_in(path.parent), _own_helpers(path.resolve().parent) as taken:
            spec.loader.exec_module(module)
            _import_later_helpers(what, path, taken)
    except InputError:
        del sys.modules[name]
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(f"{what}: {path} fails to import: {reason(error)}") from error
    return module


def closest(name: str, known: Iterable[str], lead: str = "known") -> str:
    """Return a hint: the known name that is most like this one, and all of them.

    >>> closest("gpso", ["clip", "gspo"])
    "did you mean 'gspo'? known: clip, gspo"
    """
    known = sorted(known)
    if not known:
        return f"{lead}: none"
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    question = f"did you mean '{close[0]}'? " if close else ""
    return f"{question}{lead}: {', '.join(known)}"


def reason(error: BaseException) -> str:
    """Return an exception's type and message as one line."""
    return one_line(f"{type(error).__name__}: {error}")


@contextmanager
def _found_in(*folders: Path) -> Iterator[None]:
    """Look for modules in these folders last, for the time of an import."""
    added = [place for folder in folders if (place := str(folder.resolve())) not in sys.path]
    sys.path += added
    try:
        yield
    finally:
        for place in added:
            with suppress(ValueError):  # the module may have changed the list itself
                sys.path.remove(place)


_FOLDERS: set[Path] = set()
"""Of the files that were run."""


@contextmanager
def _own_helpers(folder: Path) -> Iterator[Collection[str]]:
    """Set helpers of other folders' files aside that have the name of a module in this folder: each file gets its
    own. Afterwards the name stands for the first one again, as it does for whoever imports it later.

    Yields these names.
    """
    _FOLDERS.add(folder)
    others = {name: module for name, module in list(sys.modules.items()) if _is_other_helper(name, module, folder)}
    for name in others:
        del sys.modules[name]
    try:
        yield others.keys()
    finally:
        sys.modules.update(others)


def _import_later_helpers(what: str, path: Path, taken: Collection[str]) -> None:
    """Import the modules beside a file that its functions will import: by then nobody looks in its folder.

    Args:
        what: as in `imported`.
        path: of the file.
        taken: names that stand for modules beside other files, and will when the functions run.

    Raises:
        InputError: such a name is imported in a function, which would get the other file's module.
    """
    folder = path.parent
    for name in _imported_in_functions(path):
        top = name.partition(".")[0]
        if not ((folder / f"{top}.py").is_file() or (folder / top).is_dir()):
            continue
        if top in taken:
            raise InputError(
                f"{what}: {path} imports '{top}' in a function, and a scorer's file in another folder has a module of "
                "that name",
                hint="import it at the top of the file, or rename it",
            )
        with suppress(Exception, SystemExit):  # whoever calls the function is told
            importlib.import_module(name)


def _imported_in_functions(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a compiled file, under this name
        return []
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    found: list[str] = []
    for node in (inner for function in functions for inner in ast.walk(function)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append(node.module)
    return list(dict.fromkeys(found))


def _is_other_helper(name: str, module: ModuleType, folder: Path) -> bool:
    top = name.partition(".")[0]
    if not ((folder / f"{top}.py").is_file() or (folder / top).is_dir()):
        return False
    found = getattr(sys.modules.get(top), "__file__", None)
    if found is None:
        return False
    place = Path(found).resolve()
    home = place.parent.parent if place.name == "__init__.py" else place.parent
    return home != folder and home in _FOLDERS


def _public(module: ModuleType) -> list[str]:
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    return own or [name for name in dir(module) if not name.startswith("_")]  # one that hands on what others define
