"""Yes or no about images: POPE (are these objects there?) and benchmarks built like MME (two questions an image)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from r3_rl.benches.asking import SHORT, YES_NO, Asked, AskedBench, question_for
from r3_rl.benches.base import Figure, ItemBench, Request, Sums, batch_of
from r3_rl.benches.published import MME, POPE, field, find_image, given_path, missing, read_lines
from r3_rl.errors import DataError

_POPE_FILES = {kind: f"coco_pope_{kind}.json" for kind in ("random", "popular", "adversarial")}
_PICTURES = (".jpg", ".jpeg", ".png")
_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def says_no(text: str) -> bool:
    """Return whether an answer is a no by POPE's rule: `No`, `no` or `not` among the words of its first sentence.
    Everything else counts as a yes.

    >>> [says_no(text) for text in ("No, there is none.", "There is not. Yes?", "none", "Yes. No.")]
    [True, True, False, False]
    """
    words = text.partition(".")[0].replace(",", "").split()
    return any(word in ("No", "no", "not") for word in words)


def yes_or_no(text: str) -> str:
    """Return `yes`, `no` or `other` by MME's rule: what the first four letters hold, in lower case.

    >>> [yes_or_no(text) for text in ("Yes.", "no", "The answer is yes", "Not")]
    ['yes', 'no', 'other', 'no']
    """
    start = text.strip().lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def pope(request: Request) -> list[ItemBench]:
    """Return POPE's sets; `path` is one file, or a folder with up to three."""
    path = given_path(request, POPE)
    files = {path.stem.rpartition("_")[2]: path}
    if path.is_dir():
        files = {kind: path / name for kind, name in _POPE_FILES.items() if (path / name).is_file()}
        if not files:
            raise missing(path / _POPE_FILES["random"], POPE)
    return [_pope(request, kind, file) for kind, file in files.items()]


def _pope(request: Request, kind: str, file: Path) -> AskedBench:
    rows = read_lines(file, POPE)[: request.limit]
    folders = [file.parent / "val2014", file.parent / "images", file.parent]
    asked = []
    for number, row in rows:
        place = f"{file}:{number}"
        question, label = field(row, "text", str, place), field(row, "label", str, place).lower()
        if label not in ("yes", "no"):
            raise DataError(f"{place}: label is {label[:20]!r}, neither yes nor no")
        name = field(row, "image", str, place)
        asked.append(
            Asked(
                name=f"{number:06d}",
                image=find_image(name, folders, POPE, place),
                texts=[question_for(request, question, SHORT)],
                score=partial(_pope_score, label),
                shown={"question": question, "answer": label, "image": name},
            )
        )
    facts = {
        "prompt": question_for(request, "QUESTION", SHORT),
        "answer": "no if the first sentence says no or not, else yes",
        "source": POPE.where,
    }
    rows_of = partial(_pope_rows, f"POPE, {kind}")
    size = batch_of(request)
    return AskedBench(name=f"pope.{kind}", title=f"POPE, {kind}", asked=asked, rows=rows_of, facts=facts, batch=size)


def _pope_score(label: str, said: Sequence[str]) -> dict[str, float]:
    yes, wanted = not says_no(said[0]), label == "yes"
    counts = {"tp": yes and wanted, "fp": yes and not wanted, "fn": not yes and wanted}
    return {"accuracy": float(yes == wanted), "yes": float(yes), **{name: float(hit) for name, hit in counts.items()}}


def _pope_rows(title: str, names: Sequence[str]) -> list[Figure]:
    def precision(sums: Sums) -> np.ndarray:
        return _over(sums.sum("tp"), sums.sum("tp") + sums.sum("fp"))

    def recall(sums: Sums) -> np.ndarray:
        return _over(sums.sum("tp"), sums.sum("tp") + sums.sum("fn"))

    def f1(sums: Sums) -> np.ndarray:
        return _over(2 * sums.sum("tp"), 2 * sums.sum("tp") + sums.sum("fp") + sums.sum("fn"))

    return [
        Figure(name="accuracy", label="Accuracy", group=title, headline=True),
        Figure(name="precision", label="Precision", hint="of yes", group=title, formula=precision),
        Figure(name="recall", label="Recall", hint="of yes", group=title, formula=recall),
        Figure(name="f1", label="F1", group=title, formula=f1),
        Figure(name="yes", label="Yes share", hint="half is right", group=title, wanted="neither"),
    ]


def _over(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.divide(part, total, out=np.full(len(total), np.nan), where=total > 0)


def mme(request: Request) -> list[ItemBench]:
    """Return questions in MME's layout; `path` is the folder of its tasks."""
    folder = given_path(request, MME)
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder", hint="give the folder that holds a folder for each task")
    asked = [one for task in sorted(p for p in folder.iterdir() if p.is_dir()) for one in _task(task, request)]
    if not asked:
        raise missing(folder / "existence", MME)
    facts = {
        "prompt": question_for(request, "QUESTION", YES_NO),
        "answer": "yes, no or other by the first four letters",
        "source": MME.where,
    }
    return [AskedBench(name="mme", title="MME", asked=asked, rows=_mme_rows, facts=facts, batch=batch_of(request))]


def _task(task: Path, request: Request) -> Iterator[Asked]:
    """The images of a task, each with its two questions."""
    texts, images = [task / "questions_answers_YN", task / "images"] if (task / "images").is_dir() else [task, task]
    for file in sorted(texts.glob("*.txt"))[: request.limit]:
        picture = next(
            (images / f"{file.stem}{end}" for end in _PICTURES if (images / f"{file.stem}{end}").is_file()), None
        )
        if picture is None:
            raise DataError(f"{file}: no image {file.stem}.jpg or .png in {images}")
        pairs = list(_pairs(file))
        yield Asked(
            name=f"{task.name}/{file.stem}",
            image=picture,
            texts=[_mme_question(request, question) for question, _ in pairs],
            score=partial(_mme_score, task.name, [answer for _, answer in pairs]),
            shown={"task": task.name, "questions": [q for q, _ in pairs], "answers": [a for _, a in pairs]},
        )


def _pairs(file: Path) -> Iterator[tuple[str, str]]:
    lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if len(lines) != 2:
        raise DataError(f"{file}: {len(lines)} questions, not two")
    for number, line in enumerate(lines, start=1):
        question, tab, answer = line.rpartition("\t")
        if not tab or answer.strip().lower() not in ("yes", "no"):
            raise DataError(f"{file}:{number}: not a question, a tab, and Yes or No")
        yield question.strip(), answer.strip().lower()


def _mme_question(request: Request, question: str) -> str:
    """MME's own files end each question with the instruction."""
    return question if YES_NO.lower() in question.lower() else question_for(request, question, YES_NO)


def _mme_score(task: str, labels: Sequence[str], said: Sequence[str]) -> dict[str, float]:
    hits = [yes_or_no(text) == label for text, label in zip(said, labels, strict=True)]
    both = float(all(hits))
    share = sum(hits) / len(hits)
    return {f"acc/{task}": share, f"plus/{task}": both, "acc": share, "plus": both}


def _mme_rows(names: Sequence[str]) -> list[Figure]:
    tasks = sorted(name.removeprefix("acc/") for name in names if name.startswith("acc/"))
    perception, cognition = ([t for t in tasks if (t in _COGNITION) == thinks] for thinks in (False, True))

    def score(of: Sequence[str], sums: Sums) -> np.ndarray:
        return sum((100 * (sums.mean(f"acc/{t}") + sums.mean(f"plus/{t}")) for t in of), start=np.zeros(1))

    totals: Mapping[str, Sequence[str]] = {"Perception": perception, "Cognition": cognition}
    rows = [
        Figure(name=f"score/{name}", label=f"{name} score", hint=f"acc + acc+, at most {200 * len(of)}", group="MME",
               unit="number", formula=partial(score, of), headline=True)
        for name, of in totals.items()
        if of
    ]  # fmt: skip
    rows += [Figure(name="acc", label="acc", hint="questions", group="MME")]
    rows += [Figure(name="plus", label="acc+", hint="images with both questions right", group="MME")]
    for task in tasks:
        words = re.sub("_", " ", task)
        rows += [Figure(name=f"acc/{task}", label=words, hint="acc", group="By task")]
        rows += [Figure(name=f"plus/{task}", label=words, hint="acc+", group="By task")]
    return rows
