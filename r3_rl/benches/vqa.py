"""VQAv2 and OK-VQA, in the files of the VQA challenge: questions, and annotations with ten people's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from r3_rl.benches.asking import SHORT, Asked, AskedBench, question_for
from r3_rl.benches.base import Figure, ItemBench, Request, batch_of
from r3_rl.benches.published import OKVQA, VQAV2, Published, field, find_image, given_path, missing, read_json
from r3_rl.errors import DataError
from r3_rl.stages.vqa_words import accuracy

_FILES = {
    VQAV2.name: ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"),
    OKVQA.name: ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"),
}


def vqav2(request: Request) -> list[ItemBench]:
    """Return VQAv2's validation questions; `path` is the folder of its files."""
    return [_bench(request, VQAV2, "VQAv2")]


def okvqa(request: Request) -> list[ItemBench]:
    """Return OK-VQA's validation questions; `path` is the folder of its files."""
    return [_bench(request, OKVQA, "OK-VQA")]


def _bench(request: Request, published: Published, title: str) -> AskedBench:
    folder = given_path(request, published)
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder", hint=f"give the folder that holds {published.fetch}")
    questions, annotations = (folder / name for name in _FILES[published.name])
    people = _annotations(annotations, published)
    asked = [
        _asked(row, place, folder, people, published, request)
        for row, place in _questions(questions, published, request.limit)
    ]
    return AskedBench(
        name=published.name,
        title=title,
        asked=asked,
        rows=partial(_rows, title),
        batch=batch_of(request),
        facts={
            "prompt": question_for(request, "QUESTION", SHORT),
            "accuracy": "of the VQA challenge, mean of leaving one of ten people out",
            "source": published.where,
        },
    )


def _questions(path: Path, published: Published, limit: int | None) -> list[tuple[Mapping[str, Any], str]]:
    found = field(read_json(path, published), "questions", list, str(path))
    if not found:
        raise DataError(f"{path}: no question in it")
    return [(row, f"{path}: questions[{number}]") for number, row in enumerate(found[:limit])]


def _annotations(path: Path, published: Published) -> dict[int, tuple[Mapping[str, Any], str]]:
    """By question, with the place of each."""
    if not path.is_file():
        raise missing(path, published)
    rows = field(read_json(path, published), "annotations", list, str(path))
    places = [f"{path}: annotations[{number}]" for number in range(len(rows))]
    return {field(row, "question_id", int, place): (row, place) for row, place in zip(rows, places, strict=True)}


def _asked(
    row: Any,
    place: str,
    folder: Path,
    people: Mapping[int, tuple[Mapping[str, Any], str]],
    published: Published,
    request: Request,
) -> Asked:
    question, number = field(row, "question", str, place), field(row, "question_id", int, place)
    if number not in people:
        raise DataError(f"{place}: question {number} has no annotation", hint="are both files of one split?")
    annotation, there = people[number]
    answers = [field(answer, "answer", str, there) for answer in field(annotation, "answers", list, there)]
    if not answers:
        raise DataError(f"{there}: nobody answered")
    kind = field(annotation, "answer_type", str, there)
    name = f"COCO_val2014_{field(row, 'image_id', int, place):012d}.jpg"
    return Asked(
        name=str(number),
        image=find_image(name, [folder / "val2014", folder / "images", folder], published, place),
        texts=[question_for(request, question, SHORT)],
        score=partial(_score, answers, kind),
        shown={"question": question, "answers": answers, "answer_type": kind, "image": name},
    )


def _score(answers: Sequence[str], kind: str, said: Sequence[str]) -> dict[str, float]:
    found = accuracy(said[0], answers)
    return {"accuracy": found, f"accuracy/{kind}": found}


def _rows(title: str, names: Sequence[str]) -> list[Figure]:
    kinds = sorted(name.partition("/")[2] for name in names if name.startswith("accuracy/"))
    return [
        Figure(name="accuracy", label=f"{title} accuracy", group=title, headline=True),
        *(Figure(name=f"accuracy/{kind}", label=f"… {kind}", hint="answer type", group=title) for kind in kinds),
    ]
