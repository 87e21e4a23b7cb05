"""The lines of a prompt file, JSON objects or plain text with a prompt each; what is neither is said by line."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from r3_rl.errors import DataError, one_line
from r3_rl.recipe.tree import text_problem

Row = Mapping[str, Any]

_MOST_PROBLEMS = 8
# A prompt has a few dozen values in a few kilobytes. Beyond these a line is a mistake, or asks for work without bound.
_MAX_LETTERS = 1_000_000
_MAX_VALUES = 10_000
_MAX_DEPTH = 100
_LFS = "version https://git-lfs"
_WORTH_A_LOOK = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)|\d[eE]\+?\d{3}|\d{309}")


def read_json_lines(path: Path) -> list[tuple[int, Row]]:
    """Return the objects of a file of JSON lines with their line numbers; blank lines are passed over.

    Raises DataError with file and line of everything that is wrong.
    """
    lines = _lines(path)
    first = next((line.strip() for _, line in lines), "")
    if first.startswith("["):
        _refuse_array(path)
    if lines and not any(line.lstrip().startswith("{") for _, line in lines[:100]):
        _refuse_table(path, lines[0][0], first)
    rows: list[tuple[int, Row]] = []
    problems: list[tuple[int, str]] = []
    for number, line in lines:
        row, problem = _parsed(line)
        if problem:
            problems.append((number, problem))
        else:
            rows.append((number, row))
    refuse(path, problems)
    return rows


def read_text_lines(path: Path) -> list[tuple[int, Row]]:
    """Return the lines of a text, each as an object with the key `prompt`; blank lines are passed over."""
    lines = _lines(path)
    if lines and lines[0][1].lstrip().startswith("{"):
        raise DataError(f"{path}:{lines[0][0]}: a JSON object, not a prompt", hint="set data.kind: jsonl")
    if lines and lines[0][1].lstrip().startswith("[") and _is_json_list(path):
        _refuse_array(path)
    refuse(path, [(number, f"{why}; leave it out") for number, line in lines if (why := text_problem(line))])
    return [(number, {"prompt": line.strip()}) for number, line in lines]


def refuse(path: Path, problems: Sequence[tuple[int, str]]) -> None:
    """Raise DataError with a line for each kind of fault, at the first place where it stands."""
    places: dict[str, list[int]] = {}
    for number, problem in problems:
        places.setdefault(problem, []).append(number)
    if not places:
        return
    lines = [
        one_line(f"{path}:{numbers[0]}: {problem}" + (f" (so in {len(numbers)} lines)" if len(numbers) > 1 else ""))
        for problem, numbers in places.items()
    ]
    more = len(lines) - _MOST_PROBLEMS
    raise DataError("\n".join([*lines[:_MOST_PROBLEMS], *([f"and {more} more"] if more > 0 else [])]))


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        raise DataError(f"{path}: no such file", hint=f"did you mean {near[0]!r}?" if near else "") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})", hint="save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if text.startswith(_LFS):
        raise DataError(f"{path}:1: a git-lfs pointer, not the file itself", hint="run git lfs pull")
    # JSON strings may hold the other characters that splitlines cuts at
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _is_json_list(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8-sig")), list)
    except (ValueError, RecursionError):
        return False


def _refuse_array(path: Path) -> NoReturn:
    hint = f"write one object a line: jq -c '.[]' {path.name} > {path.stem}.lines.jsonl"
    raise DataError(f"{path}:1: a JSON array, not JSON lines", hint=hint)


def _refuse_table(path: Path, number: int, first: str) -> None:
    separator = next((s for s in "\t,;" if path.suffix in (".csv", ".tsv") and s in first), "")
    what = "a table, not JSON lines" if separator else "not JSON lines"
    hint = 'write {"prompt": ...} on each line' if separator else "one prompt a line? set data.kind: text"
    raise DataError(f"{path}:{number}: {what}: {one_line(first, 60)!r}", hint=hint)


def _parsed(line: str) -> tuple[Row, str]:
    """The object of a line, or why it is none."""
    if len(line) > _MAX_LETTERS:
        return {}, f"longer than {_MAX_LETTERS} letters; a line holds one prompt"
    try:
        row = json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except _Unclear as unclear:
        return {}, str(unclear)
    except json.JSONDecodeError as error:
        return {}, f"not JSON, {error.msg.lower()} at column {error.colno}"
    except RecursionError:
        return {}, f"nested deeper than {_MAX_DEPTH}"
    except ValueError:  # Python reads no number of more than 4,300 digits
        return {}, "a number with thousands of digits; write it as text"
    if not isinstance(row, dict):
        return {}, f"{one_line(line, 40)} is no object; write {{...}}"
    crowded = line.count(",") > _MAX_VALUES or line.count("[") + line.count("{") > _MAX_DEPTH
    return row, next(_value_problems(row), "") if crowded or _WORTH_A_LOOK.search(line) else ""


class _Unclear(Exception):
    """What Python's reader takes and JSON does not say, in words."""


def _refuse_constant(name: str) -> None:
    raise _Unclear(f"{name} is no number of JSON; write null")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _Unclear(f"{one_line(twice, 40)!r} stands twice in one object; keep one")
    return found


def _value_problems(row: Row) -> Iterator[str]:
    """What no file, tokenizer or scorer takes, with the column it is in."""
    for column, value in row.items():
        if why := text_problem(column):
            yield f"the name of a column has {why}; save the file as UTF-8 text"
        waiting, count = [(value, 1)], 0
        while waiting:
            item, depth = waiting.pop()
            count += 1
            if isinstance(item, str) and (why := text_problem(item)):
                yield f"{column}: {why}; save the file as UTF-8 text"
            if isinstance(item, float) and math.isinf(item):
                yield f"{column}: a number beyond 64 bits; write it as text"
            if count > _MAX_VALUES:
                yield f"{column}: more than {_MAX_VALUES} values"
                return
            if depth > _MAX_DEPTH:
                yield f"{column}: nested deeper than {_MAX_DEPTH}"
                return
            if isinstance(item, dict):
                waiting += [(part, depth + 1) for pair in item.items() for part in pair]
            elif isinstance(item, list):
                waiting += [(part, depth + 1) for part in item]
