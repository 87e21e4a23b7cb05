"""Questions about images in files: JSON lines with image, question and answer, or the files of a VQA challenge."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r3_rl.errors import DataError
from r3_rl.worlds.files.lines import Row, read_json_lines, refuse

MATCHES = ("exact", "yes_no", "number", "vqa")
"""Rules that a line may name, `stages.answer_rules.RULES`."""
_SHAPE = '{"image": "cats/1.jpg", "question": "how many cats?", "answer": "two"}'


@dataclass(frozen=True, kw_only=True)
class FileQuestion:
    """A question about an image in a file."""

    image: Path
    text: str
    columns: Mapping[str, Any]
    """`answer` (a text or a list of right ones), `match`, `within`, and whatever else the line has."""


def load_questions(
    path: str | Path, *, unknown_words: Callable[[str], Sequence[str]] = lambda text: ()
) -> list[FileQuestion]:
    """Read questions, their images unopened.

    Args:
        path: JSON lines, whose `image` is looked for beside the file; or a folder with the questions, the
            annotations and the images of a VQA challenge.
        unknown_words: the words of a text that the model cannot read.

    Raises:
        DataError: with file and line of everything that is wrong, an image that is not there included.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _of_a_challenge(path, unknown_words)
    rows = read_json_lines(path)
    if not rows:
        raise DataError(f"{path}: no question in it", hint=f"write one JSON object a line, such as {_SHAPE}")
    refuse(path, [(number, problem) for number, row in rows for problem in _problems(row, path.parent, unknown_words)])
    return [
        FileQuestion(image=path.parent / row["image"], text=row["question"].strip(), columns=_columns(row))
        for _, row in rows
    ]


def _columns(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("image", "question")}


def _problems(row: Row, folder: Path, unknown_words: Callable[[str], Sequence[str]]) -> Iterator[str]:
    for name in ("image", "question"):
        value = row.get(name)
        if not isinstance(value, str) or not value.strip():
            yield f"{name}: {'missing' if name not in row else 'no text'}; write {_SHAPE}"
            return
    if not (folder / row["image"]).is_file():
        yield f"image: no file {folder / row['image']}"
    if words := unknown_words(row["question"]):
        yield f"question: the model does not know {', '.join(map(repr, words))}; use its words, or another model"
    yield from _answer_problems(row)


def _answer_problems(row: Row) -> Iterator[str]:
    answer, match, within = row.get("answer"), row.get("match", "exact"), row.get("within", 0)
    listed = answer if isinstance(answer, list) else [answer]
    if not listed or not all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in listed):
        yield "answer: write a text, a number, or a list of right ones"
    elif not all(str(one).strip() for one in listed):
        yield "answer: a right answer is empty"
    if match not in MATCHES:
        yield f"match: {json.dumps(match)[:40]}; use one of {', '.join(MATCHES)}"
    elif match == "vqa" and len(listed) < 2:
        yield "match: 'vqa' compares with what several people answered; list them in answer"
    if not isinstance(within, int | float) or isinstance(within, bool) or not 0 <= within < float("inf"):
        yield "within: write a number, 0 or more"
    elif within and match != "number":
        yield "within: only match 'number' has it"


def _of_a_challenge(folder: Path, unknown_words: Callable[[str], Sequence[str]]) -> list[FileQuestion]:
    """Questions and annotations as visualqa.org publishes them."""
    questions, annotations = (_only(folder, pattern) for pattern in ("*[qQ]uestions*.json", "*[aA]nnotations*.json"))
    asked, people = _listed(questions, "questions"), _listed(annotations, "annotations")
    answers = {row.get("question_id"): row for row in people if isinstance(row, dict)}
    pictures = (path for suffix in ("jpg", "png") for path in sorted(folder.rglob(f"*.{suffix}")))
    numbered = ((path.stem.rpartition("_")[2], path) for path in pictures)
    by_number = {int(digits): path for digits, path in numbered if digits.isdecimal()}
    found, problems = [], []
    for place, row in enumerate(asked):
        told = _challenge_problem(row, answers, by_number, unknown_words)
        if told:
            problems.append((place + 1, told))
            continue
        humans = [str(one["answer"]) for one in answers[row["question_id"]]["answers"]]
        columns = {"answer": humans, "match": "vqa" if len(humans) > 1 else "exact", "id": row["question_id"]}
        found.append(FileQuestion(image=by_number[row["image_id"]], text=row["question"].strip(), columns=columns))
    refuse(Path(f"{questions}: question"), problems)
    if not found:
        raise DataError(f"{questions}: no question in it")
    return found


def _challenge_problem(
    row: Any,
    answers: Mapping[Any, Any],
    images: Mapping[int, Path],
    unknown_words: Callable[[str], Sequence[str]],
) -> str:
    """Why a question cannot be asked, or ""; the number before it in a message is its place in the list."""
    if not isinstance(row, dict) or not isinstance(row.get("question"), str) or not row["question"].strip():
        return "a question without text"
    answered = answers.get(row.get("question_id"))
    given = answered.get("answers") if answered else None
    if not isinstance(given, list) or not given or not all(isinstance(a, dict) and "answer" in a for a in given):
        return "a question that nobody answered; are both files of one split?"
    if row.get("image_id") not in images:
        return "a question whose image is not in the folder"
    if words := unknown_words(row["question"]):
        return f"the model does not know {', '.join(map(repr, words))}; use its words, or another model"
    return ""


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:3]) or "none"
        raise DataError(f"{folder}: one file {pattern} is wanted, there is {names}", hint="keep one split in a folder")
    return found[0]


def _listed(path: Path, key: str) -> list[Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON, {error}") from None
    rows = document.get(key) if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise DataError(f"{path}: no list '{key}' in it", hint="take the file as visualqa.org publishes it")
    return rows
