"""Finding a scorer by what a recipe calls it: an installed name, `package.module:name`, `./file.py:name`, or `trl:name`
for one of TRL's own rewards.

No scorer is listed here: ours come through the entry point group `r3_rl.scorers`, the same door as a stranger's.
"""

from __future__ import annotations

import functools
import inspect
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from r3_rl.errors import InputError, R3Error, ScorerError, one_line
from r3_rl.importing import closest, imported, reason
from r3_rl.scoring.base import ScorerInfo, declared_info, info_of, missing_packages
from r3_rl.types import STANDARD_ARGUMENTS

GROUP = "r3_rl.scorers"
_SAMPLE_ARGUMENTS = frozenset(STANDARD_ARGUMENTS) - {"log_metric", "log_extra", "trainer_state"}


class ScorerInputError(ScorerError, InputError):
    """A scorer was named wrongly or given parameters that it does not take; nothing was started."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class ScorerEntry:
    """One line of `r3 rewards ls`: an installed scorer, or why it cannot be imported."""

    name: str
    origin: str
    """Distribution and version that brought it, such as `r3-rl 0.1.0`."""
    info: ScorerInfo | None
    """None when the import failed."""
    error: str = ""


def short_name(scorer: str) -> str:
    """Return what metrics call a scorer that the recipe gives no name.

    >>> short_name("./my_score.py:redness"), short_name("jpeg_size")
    ('redness', 'jpeg_size')
    """
    return scorer.rpartition(":")[2]


def list_scorers() -> list[ScorerEntry]:
    """Return every installed scorer by name; one that fails to import is listed with its error."""
    return [_entry(point) for point in _entry_points().values()]


def find_scorer(scorer: str, base_folder: str | Path = ".") -> Any:
    """Return the function or class that a name stands for, not yet built.

    `scorer` is an installed name, `package.module:name`, `file.py:name` with the path relative to `base_folder` (the
    recipe's folder), or `trl:name` for a reward of the package trl. Raises `ScorerInputError` that lists what exists.

    >>> find_scorer("r3_rl.scoring.base:info_of").__name__
    'info_of'
    """
    try:
        return _found(scorer, Path(base_folder))
    except OSError as error:  # a name that no file has, a folder that may not be read
        why = str(error.strerror).lower()
        raise ScorerInputError(f"scorer '{one_line(scorer, 80)}': {why}", hint=_OTHER_WAYS) from error


def _found(scorer: str, folder: Path) -> Any:
    place, colon, attribute = scorer.rpartition(":")
    if not colon:
        if scorer.endswith(".py"):
            raise ScorerInputError(
                f"scorer '{scorer}': the name of the function or class is missing", hint=f"write '{scorer}:NAME'"
            )
        return _from_entry_point(scorer, folder)
    if place == "trl":
        if find_spec("trl") is None:
            raise ScorerInputError(f"scorer '{scorer}' needs the package trl", hint="pip install 'r3-rl[train]'")
        place = "trl.rewards"
    try:
        return imported(f"scorer '{one_line(scorer, 80)}'", f"{place}:{attribute}", folder)
    except InputError as error:
        raise ScorerInputError(error.message, hint=error.hint) from error


def load_scorer(scorer: str, params: Mapping[str, Any] | None = None, base_folder: str | Path = ".") -> Any:
    """Return the scorer ready to be called: a class is built with `params`, a function gets them bound.

    A function that takes nothing of a batch (no prompts, completions, images) is a factory: it is called with `params`
    and returns the scorer, as TRL's `get_...` rewards do. Raises `ScorerInputError` for what `check_scorer` finds.
    """
    found = find_scorer(scorer, base_folder)
    params = dict(params or {})
    problems = _param_problems(scorer, found, params)
    if problems:
        raise ScorerInputError("\n".join(problems))
    if not inspect.isclass(found) and not is_factory(found):
        return functools.partial(found, **params) if params else found
    try:
        built = found(**params)
    except R3Error:
        raise
    except Exception as error:
        raise ScorerError(f"scorer '{scorer}' cannot be built: {type(error).__name__}: {error}") from error
    if not callable(built):
        raise ScorerInputError(
            f"scorer '{scorer}': a {type(built).__name__} cannot be called",
            hint="give the class a method `__call__(self, prompts, completions, images, ...)`",
        )
    return built


def check_scorer(scorer: str, params: Mapping[str, Any] | None = None, base_folder: str | Path = ".") -> list[str]:
    """Return what is wrong with a scorer's name, parameters and packages, one line each; nothing is built or imported.

    >>> check_scorer("r3_rl.scoring.base:nothing")[0].split(";")[0]
    "scorer 'r3_rl.scoring.base:nothing': no 'nothing' in it"
    """
    try:
        found = find_scorer(scorer, base_folder)
        problems = _param_problems(scorer, found, dict(params or {}))
        info = info_of(found) if problems else declared_info(found, dict(params or {}))
        problems += _package_problems(scorer, info)
    except (ScorerError, TypeError, ValueError) as error:
        return [" ".join(str(error).split())]
    return problems


def _package_problems(scorer: str, info: ScorerInfo) -> list[str]:
    missing = missing_packages(info)
    if not missing:
        return []
    install = info.install or f"pip install {' '.join(missing)}"
    return [f"scorer '{scorer}' needs the package{'s' * (len(missing) > 1)} {', '.join(missing)}; {install}"]


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def _entry(point: EntryPoint) -> ScorerEntry:
    origin = f"{point.dist.name} {point.dist.version}" if point.dist else "?"
    try:
        return ScorerEntry(name=point.name, origin=origin, info=info_of(point.load()))
    except (Exception, SystemExit) as error:  # a stranger's module may raise anything; the list goes on without it
        return ScorerEntry(name=point.name, origin=origin, info=None, error=reason(error))


def _from_entry_point(name: str, folder: Path) -> Any:
    points = _entry_points()
    if name not in points:
        if (folder / f"{name}.py").is_file():
            hint = f"for the file write './{name}.py:{name}'"
        else:
            hint = f"{closest(name, points)}; {_OTHER_WAYS}"
        raise ScorerInputError(f"no scorer is called '{name}'", hint=hint)
    try:
        return points[name].load()
    except (Exception, SystemExit) as error:
        raise ScorerInputError(f"scorer '{name}' ({points[name].value}) fails to import: {reason(error)}") from error


_OTHER_WAYS = "a scorer of your own is './file.py:name' or 'package.module:name'"


def is_factory(found: Any) -> bool:
    """Whether a function takes nothing of a batch, so that it returns a scorer rather than scores."""
    parameters = inspect.signature(found).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return inspect.isfunction(found) and not takes_all and not _SAMPLE_ARGUMENTS & set(parameters)


def _param_problems(scorer: str, found: Any, params: dict[str, Any]) -> list[str]:
    try:
        parameters = dict(inspect.signature(found).parameters)
    except (TypeError, ValueError) as error:  # some callables written in C have none
        return [f"scorer '{scorer}': its signature cannot be read: {error}"]
    builds = inspect.isclass(found) or is_factory(found)
    named = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        and (builds or name not in STANDARD_ARGUMENTS)
    }
    # A scorer function's **columns are the data set's; a constructor's **options are the user's.
    takes_all = builds and any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    # A function's argument without a default is a column of the data set.
    offered = [n for n, parameter in named.items() if builds or parameter.default is not inspect.Parameter.empty]
    problems = []
    for name in params:
        if name not in named and not takes_all:
            problems.append(f"scorer '{scorer}' takes no parameter '{name}'; {closest(name, offered, 'it takes')}")
    if builds:
        for name, parameter in named.items():
            if parameter.default is inspect.Parameter.empty and name not in params:
                problems.append(f"scorer '{scorer}' needs the parameter '{name}'; add it under `params`")
    hints = _annotations(found)
    for name in named:
        if name in params and name in hints:
            problem = _type_problem(params[name], hints[name])
            if problem:
                # A mapping is not repeated: the problem names its key, and another may hold what is not to be shown.
                shown = "" if isinstance(params[name], dict) else f" = {params[name]!r}"
                problems.append(f"scorer '{scorer}': parameter '{name}'{shown}: {problem}")
    check_params = getattr(found, "check_params", None)
    if callable(check_params) and not problems:  # what no annotation can say, such as that a text is an address
        problems += [f"scorer '{scorer}': {text}" for text in check_params(params)]
    return problems


def _annotations(found: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(found.__init__ if inspect.isclass(found) else found)
    except Exception:  # an annotation that only a type checker can resolve says nothing about a value
        return {}


def _type_problem(value: Any, annotation: Any) -> str:
    # JSON is what a recipe can express, so JSON's strict reading is the right one: a list fits a tuple, "3" no int.
    from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

    try:
        TypeAdapter(annotation).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
        if not isinstance(value, dict):
            return str(found[0]["msg"])
        return "; ".join(_key_problem(one["type"], one["loc"], one["msg"], annotation) for one in found)
    except (PydanticSchemaGenerationError, PydanticUserError, TypeError):
        return ""  # not a type that a recipe could write; the scorer itself must judge it
    return ""


def _key_problem(kind: str, place: tuple[int | str, ...], message: str, annotation: Any) -> str:
    """One key of a mapping; an unknown one is told what there is."""
    types = [annotation, *typing.get_args(annotation)]
    known = next(([field.name for field in fields(each)] for each in types if is_dataclass(each)), [])
    if kind == "unexpected_keyword_argument" and len(place) == 1 and known:
        return f"no key '{place[0]}'; {closest(str(place[0]), known, 'it takes')}"
    if kind == "missing":
        return f"the key '{'.'.join(map(str, place))}' is missing"
    return f"{'.'.join(map(str, place))}: {message}"
