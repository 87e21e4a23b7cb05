"""Prompts from files as published: GenEval, GenEval++, TIIF, JSON lines, plain text."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from r3_rl.errors import DataError, InputError
from r3_rl.types import STANDARD_ARGUMENTS, Prompt
from r3_rl.worlds.files.checks import count_problems, geneval_problems, tiif_problems
from r3_rl.worlds.files.lines import Row, read_json_lines, read_text_lines, refuse


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """How the lines of a kind of file read."""

    prompt_key: str
    tag_key: str
    problems: Callable[[Row], Iterator[str]]
    read: Callable[[Path], list[tuple[int, Row]]] = read_json_lines


_KINDS = {
    "geneval": _Kind(prompt_key="prompt", tag_key="tag", problems=geneval_problems),
    "tiif": _Kind(prompt_key="short_description", tag_key="type", problems=tiif_problems),
    "jsonl": _Kind(prompt_key="prompt", tag_key="tag", problems=lambda row: iter(())),
    "text": _Kind(prompt_key="prompt", tag_key="tag", problems=lambda row: iter(()), read=read_text_lines),
}


def load_prompts(
    kind: str,
    path: str | Path,
    *,
    prompt_key: str | None = None,
    tags: Sequence[str] | None = None,
    exclude_tags: Sequence[str] = (),
    unknown_words: Callable[[str], Sequence[str]] = lambda text: (),
) -> list[Prompt]:
    """Reads a prompt file: one JSON object a line, all of its columns kept for the scorers, in the file's order.

    Args:
        kind: `geneval` (also GenEval++), `tiif`, whose `type` becomes the column `tag` too, `jsonl`, or `text`, whose
            lines are prompts.
        path: of the file; blank lines are skipped.
        prompt_key: column of the text; None takes `prompt`, for `tiif` `short_description`.
        tags: keep only these; None keeps all.
        exclude_tags: leave these out.
        unknown_words: the words of a text that the model cannot read.

    Raises DataError with file and line of everything that is wrong, up to eight kinds of fault at once.
    """
    if kind not in _KINDS:
        raise InputError(f"data.kind: {kind!r} reads no file", hint=f"use one of {', '.join(_KINDS)}")
    path, form = Path(path), _KINDS[kind]
    key = prompt_key or form.prompt_key
    rows = form.read(path)
    if not rows:
        line = "prompt a line" if kind == "text" else 'JSON object a line, such as {"prompt": "a red cup"}'
        raise DataError(f"{path}: no prompts in it", hint=f"write one {line}")
    if other := _other_kind(kind, rows[0][1], key):
        raise DataError(f"{path}: not a {kind} file, its first line reads as {other}", hint=f"set data.kind: {other}")
    refuse(path, [(n, problem) for n, row in rows for problem in (*_common_problems(row, key), *form.problems(row))])
    chosen = _filtered(path, rows, form.tag_key, tags, exclude_tags)
    unread = [(n, ", ".join(map(repr, words))) for n, row in chosen if (words := unknown_words(row[key]))]
    refuse(path, [(n, f"the model does not know {words}; use its words, or another model") for n, words in unread])
    return [Prompt(text=row[key].strip(), columns=_columns(row, form)) for _, row in chosen]


def _other_kind(kind: str, row: Row, key: str) -> str | None:
    """The published kind that a line fits, when it has not even the prompt of the kind that was asked for."""
    fits = (name for name, form in _KINDS.items() if form.prompt_key in row and not any(form.problems(row)))
    return None if key in row else next((name for name in fits if name not in (kind, "jsonl")), None)


def _columns(row: Row, form: _Kind) -> dict[str, Any]:
    return dict(row) if form.tag_key not in row else {"tag": row[form.tag_key], **row}


def _common_problems(row: Row, key: str) -> Iterator[str]:
    if key not in row:
        yield _no_column(key, tuple(row))
    elif not isinstance(row[key], str):
        yield f"{key}: {json.dumps(row[key])[:40]} is no text"
    elif not row[key].strip():
        yield f"{key}: the prompt is empty"
    yield from count_problems(row)
    for name in sorted(set(row) & set(STANDARD_ARGUMENTS)):
        yield f"column {name!r} has the name of an argument that every scorer gets; rename it"


@lru_cache(maxsize=64)  # a whole file may lack it, and the search takes a while
def _no_column(key: str, columns: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(key, columns, n=1, cutoff=0.5)
    there = f"did you mean {near[0]!r}?" if near else f"its columns are {', '.join(map(repr, columns)) or 'none'}"
    return f"no column {key!r}; {there} (data.prompt_key chooses the column)"


def _filtered(
    path: Path, rows: list[tuple[int, Row]], tag_key: str, tags: Sequence[str] | None, exclude_tags: Sequence[str]
) -> list[tuple[int, Row]]:
    if tags is None and not exclude_tags:
        return rows
    refuse(path, [(n, f"no column {tag_key!r}, by which tags choose") for n, row in rows if tag_key not in row])
    there = list(dict.fromkeys(str(row[tag_key]) for _, row in rows))
    for setting, names in (("tags", tags or ()), ("exclude_tags", exclude_tags)):
        for name in names:
            if name not in there:
                near = difflib.get_close_matches(name, there, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(there)}"
                raise DataError(f"{path}: data.{setting}: no prompt has the tag {name!r}", hint=hint)
    kept = [(n, row) for n, row in rows if (tags is None or row[tag_key] in tags) and row[tag_key] not in exclude_tags]
    if not kept:
        raise DataError(f"{path}: no prompt is left after data.tags and data.exclude_tags", hint="drop one of the two")
    return kept
