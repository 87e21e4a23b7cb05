"""Prompts from files as published (GenEval, GenEval++, TIIF, plain JSON lines), and their order in a run."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from r3_rl.errors import DataError, InputError
from r3_rl.rollout.prompt_checks import geneval_problems, tiif_problems
from r3_rl.scoring.base import STANDARD_ARGUMENTS
from r3_rl.types import Prompt

_MOST_PROBLEMS = 8

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """How the lines of a kind of file read."""

    prompt_key: str
    tag_key: str
    problems: Callable[[Row], Iterator[str]]


_KINDS = {
    "geneval": _Kind(prompt_key="prompt", tag_key="tag", problems=geneval_problems),
    "tiif": _Kind(prompt_key="short_description", tag_key="type", problems=tiif_problems),
    "jsonl": _Kind(prompt_key="prompt", tag_key="tag", problems=lambda row: iter(())),
}


def load_prompts(
    kind: str,
    path: str | Path,
    *,
    prompt_key: str | None = None,
    tags: Sequence[str] | None = None,
    exclude_tags: Sequence[str] = (),
) -> list[Prompt]:
    """Reads a prompt file: one JSON object a line, all of its columns kept for the scorers, in the file's order.

    Args:
        kind: `geneval` (also GenEval++), `tiif`, whose `type` becomes the column `tag` too, or `jsonl`.
        path: of the file; blank lines are skipped.
        prompt_key: column of the text; None takes `prompt`, for `tiif` `short_description`.
        tags: keep only these; None keeps all.
        exclude_tags: leave these out.

    Raises DataError with file and line of everything that is wrong, up to eight kinds of fault at once.
    """
    if kind not in _KINDS:
        raise InputError(f"data.kind: {kind!r} reads no file", hint=f"use one of {', '.join(_KINDS)}")
    path, form = Path(path), _KINDS[kind]
    key = prompt_key or form.prompt_key
    rows = _read_rows(path)
    if not rows:
        raise DataError(
            f"{path}: no prompts in it", hint='write one JSON object a line, such as {"prompt": "a red cup"}'
        )
    if other := _other_kind(kind, rows[0][1], key):
        raise DataError(f"{path}: not a {kind} file, its first line reads as {other}", hint=f"set data.kind: {other}")
    _refuse(path, [(n, problem) for n, row in rows for problem in (*_common_problems(row, key), *form.problems(row))])
    chosen = _filtered(path, rows, form.tag_key, tags, exclude_tags)
    return [Prompt(text=row[key].strip(), columns=_columns(row, form)) for row in chosen]


def _other_kind(kind: str, row: Row, key: str) -> str | None:
    """The published kind that a line fits, when it has not even the prompt of the kind that was asked for."""
    fits = (name for name, form in _KINDS.items() if form.prompt_key in row and not any(form.problems(row)))
    return None if key in row else next((name for name in fits if name not in (kind, "jsonl")), None)


def _columns(row: Row, form: _Kind) -> dict[str, Any]:
    return dict(row) if form.tag_key not in row else {"tag": row[form.tag_key], **row}


def _read_rows(path: Path) -> list[tuple[int, Row]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        raise DataError(f"{path}: no such file", hint=f"did you mean {near[0]!r}?" if near else "") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})", hint="save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if text.lstrip().startswith("["):
        hint = f"write one object a line: jq -c '.[]' {path.name} > {path.stem}.jsonl"
        raise DataError(f"{path}:1: a JSON array, not JSON lines", hint=hint)
    rows: list[tuple[int, Row]] = []
    problems: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), 1):  # JSON strings may hold the other characters splitlines cuts at
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append((number, f"not JSON, {error.msg.lower()} at column {error.colno}"))
            continue
        if isinstance(row, dict):
            rows.append((number, row))
        else:
            problems.append((number, f"{line.strip()[:40]} is no object; write {{...}}"))
    _refuse(path, problems)
    return rows


def _common_problems(row: Row, key: str) -> Iterator[str]:
    if key not in row:
        near = difflib.get_close_matches(key, row, n=1, cutoff=0.5)
        there = f"did you mean {near[0]!r}?" if near else f"its columns are {', '.join(map(repr, row)) or 'none'}"
        yield f"no column {key!r}; {there} (data.prompt_key chooses the column)"
    elif not isinstance(row[key], str):
        yield f"{key}: {json.dumps(row[key])[:40]} is no text"
    elif not row[key].strip():
        yield f"{key}: the prompt is empty"
    for name in sorted(set(row) & set(STANDARD_ARGUMENTS)):
        yield f"column {name!r} has the name of an argument that every scorer gets; rename it"


def _filtered(
    path: Path, rows: list[tuple[int, Row]], tag_key: str, tags: Sequence[str] | None, exclude_tags: Sequence[str]
) -> list[Row]:
    if tags is None and not exclude_tags:
        return [row for _, row in rows]
    _refuse(path, [(n, f"no column {tag_key!r}, by which tags choose") for n, row in rows if tag_key not in row])
    there = list(dict.fromkeys(str(row[tag_key]) for _, row in rows))
    for setting, names in (("tags", tags or ()), ("exclude_tags", exclude_tags)):
        for name in names:
            if name not in there:
                near = difflib.get_close_matches(name, there, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(there)}"
                raise DataError(f"{path}: data.{setting}: no prompt has the tag {name!r}", hint=hint)
    kept = [row for _, row in rows if (tags is None or row[tag_key] in tags) and row[tag_key] not in exclude_tags]
    if not kept:
        raise DataError(f"{path}: no prompt is left after data.tags and data.exclude_tags", hint="drop one of the two")
    return kept


def _refuse(path: Path, problems: Sequence[tuple[int, str]]) -> None:
    """Raises DataError with a line for each kind of fault, at the first place where it stands."""
    places: dict[str, list[int]] = {}
    for number, problem in problems:
        places.setdefault(problem, []).append(number)
    if not places:
        return
    lines = [
        f"{path}:{numbers[0]}: {problem}" + (f" (so in {len(numbers)} lines)" if len(numbers) > 1 else "")
        for problem, numbers in places.items()
    ]
    more = len(lines) - _MOST_PROBLEMS
    raise DataError("\n".join([*lines[:_MOST_PROBLEMS], *([f"and {more} more"] if more > 0 else [])]))


class PromptStream:
    """The prompts of every training step, from the step's number alone, so that a resumed run goes on exactly.

    Prompts from a list come in a new order every epoch, each once; a batch that an epoch's end falls into goes on with
    the next epoch. The processes of a run take neighbouring parts of the same batch, so two see together what one sees.

    Args:
        prompts: a list, or `sample(n, seed)` of a world that makes its own.
        num_prompts: prompts of a step over all processes.
        seed: of the order, or of the samples.

    >>> stream = PromptStream([Prompt(text=t) for t in "abc"], num_prompts=2, seed=0)
    >>> sorted(p.text for step in (0, 1, 2) for p in stream.batch(step))
    ['a', 'a', 'b', 'b', 'c', 'c']
    """

    def __init__(
        self, prompts: Sequence[Prompt] | Callable[[int, int], Sequence[Prompt]], num_prompts: int, seed: int
    ) -> None:
        if num_prompts < 1:
            raise InputError(f"rollout.num_prompts: {num_prompts} is less than 1")
        if not callable(prompts) and not prompts:
            raise DataError("no prompts to draw from")
        self._prompts, self._num_prompts, self._seed = prompts, num_prompts, seed
        self._orders: dict[int, np.ndarray] = {}

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> list[Prompt]:
        """The prompts of one step (from 0 on) on one of `world_size` processes."""
        if self._num_prompts % world_size:
            raise InputError(
                f"rollout.num_prompts: {self._num_prompts} prompts cannot be shared by {world_size} processes",
                hint=f"use a multiple of {world_size}",
            )
        share = self._num_prompts // world_size
        if callable(self._prompts):
            seed = int(np.random.SeedSequence([self._seed, step]).generate_state(1)[0])
            made = self._prompts(self._num_prompts, seed)
            assert len(made) == self._num_prompts, f"asked for {self._num_prompts} prompts, got {len(made)}"
            return list(made[rank * share : (rank + 1) * share])
        first = step * self._num_prompts + rank * share
        return [self._prompts[self._index(place)] for place in range(first, first + share)]

    def _index(self, place: int) -> int:
        epoch, within = divmod(place, len(self._prompts))  # type: ignore[arg-type]
        if epoch not in self._orders:
            if len(self._orders) > 1:  # a step touches at most two epochs of a file larger than a batch
                self._orders.clear()
            rng = np.random.default_rng([self._seed, epoch])
            self._orders[epoch] = rng.permutation(len(self._prompts))  # type: ignore[arg-type]
        return int(self._orders[epoch][within])
