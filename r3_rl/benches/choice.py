"""Multiple choice with circular evaluation, in MMBench's files: right only if it is right in every rotation of the
options."""

from __future__ import annotations

import base64
import binascii
import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from r3_rl.benches.asking import LETTER, Asked, AskedBench
from r3_rl.benches.base import Figure, ItemBench, Request, batch_of
from r3_rl.benches.published import CHOICE, given_path
from r3_rl.errors import DataError

LETTERS = "ABCDEFGH"
_MARKS = ".()[],:;!*#{}"


def choice(request: Request) -> list[ItemBench]:
    """Return the questions of a TSV file; `path` is the file."""
    path = given_path(request, CHOICE)
    asked = [_asked(row, f"{path}:{number}", request) for number, row in _rows_of(path, request.limit)]
    if not asked:
        raise DataError(f"{path}: no question in it")
    template = "HINT, QUESTION and options, A to D, one a line" if request.world is None else "QUESTION"
    facts = {
        "prompt": template if request.world else f"{template}; {LETTER}",
        "answer": "one letter among its words, else the one option whose text it holds; no judge",
        "circular": "as many requests as options, each with the options rotated by one",
        "source": CHOICE.where,
    }
    size = batch_of(request)
    return [AskedBench(name="choice", title="Multiple choice", asked=asked, rows=_figures, facts=facts, batch=size)]


def rotations(options: Sequence[str]) -> list[list[str]]:
    """Return the options in every rotation, the given one first.

    >>> rotations(["x", "y", "z"])
    [['x', 'y', 'z'], ['y', 'z', 'x'], ['z', 'x', 'y']]
    """
    return [[*options[shift:], *options[:shift]] for shift in range(len(options))]


def chosen(answer: str, options: Sequence[str]) -> int | None:
    """Return which option an answer names: the only letter among its words, else the only option whose text it holds;
    None if neither is one. An `A` in a sentence of more than three words is an article.

    >>> options = ["a red cup", "two dogs"]
    >>> [chosen(text, options) for text in ("B", "(A).", "I see two dogs", "A dog runs away", "A or B")]
    [1, 0, 1, None, None]
    """
    words = "".join(" " if mark in _MARKS else mark for mark in answer).split()
    letters = [place for place, letter in enumerate(LETTERS[: len(options)]) if letter in words]
    if len(letters) == 1 and not (letters == [0] and len(words) > 3):
        return letters[0]
    if letters and len(letters) > 1:
        return None
    texts = [place for place, option in enumerate(options) if option.lower() in answer.lower()]
    return texts[0] if len(texts) == 1 else None


def _rows_of(path: Path, limit: int | None) -> Iterator[tuple[int, Mapping[str, str]]]:
    """The lines of a TSV. MMBench's files hold images, so a field may be long."""
    csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t")
            there = reader.fieldnames or []
            lacking = [name for name in ("question", "A", "B", "answer", "image") if name not in there]
            if lacking:
                raise DataError(
                    f"{path}:1: no column {', '.join(lacking)}", hint=f"it has {', '.join(there[:10]) or 'nothing'}"
                )
            for number, row in enumerate(reader, start=2):
                if limit is not None and number > limit + 1:
                    return
                yield number, {name: value or "" for name, value in row.items() if isinstance(name, str)}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})", hint=f"fetch {CHOICE.fetch}") from None


def _asked(row: Mapping[str, str], place: str, request: Request) -> Asked:
    options = [row[letter] for letter in LETTERS if row.get(letter, "").strip() not in ("", "nan")]
    right = LETTERS.find(row["answer"].strip() or "?")
    if len(options) < 2 or not 0 <= right < len(options):
        raise DataError(f"{place}: answer {row['answer'][:10]!r} is not one of {len(options)} options")
    try:
        image = base64.b64decode(row["image"], validate=True)
    except (binascii.Error, ValueError):
        raise DataError(f"{place}: image is not base64") from None
    hint = row.get("hint", "").strip()
    turned = rotations(options)
    kind = row.get("category", "").strip()
    return Asked(
        name=row.get("index") or place,
        image=image,
        texts=[_text(request, "" if hint == "nan" else hint, row["question"], these) for these in turned],
        score=partial(_score, turned, options[right], kind),
        shown={"question": row["question"], "options": options, "answer": row["answer"], "category": kind},
    )


def _text(request: Request, hint: str, question: str, options: Sequence[str]) -> str:
    """As published; a model that knows only the words of a world reads the question, and answers with an option's
    text."""
    if request.world is not None:
        return question
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([*([hint] if hint else []), question, *lines, LETTER])


def _score(turned: Sequence[Sequence[str]], right: str, kind: str, said: Sequence[str]) -> dict[str, float]:
    hits = []
    for options, text in zip(turned, said, strict=True):
        place = chosen(text, options)
        hits.append(place is not None and options[place] == right)
    values = {"circular": float(all(hits)), "plain": float(hits[0])}
    return {**values, **({f"circular/{kind}": values["circular"]} if kind else {})}


def _figures(names: Sequence[str]) -> list[Figure]:
    group = "Multiple choice"
    kinds = sorted(name.partition("/")[2] for name in names if name.startswith("circular/"))
    return [
        Figure(name="circular", label="Circular accuracy", hint="right in every rotation", group=group, headline=True),
        Figure(name="plain", label="Accuracy in the given order", group=group),
        *(Figure(name=f"circular/{k}", label=f"… {k.replace('_', ' ')}", hint="circular", group=group) for k in kinds),
    ]
