"""Small sets in the published file formats, drawn by a world: real files for every reader, and for trying `r3 eval`.

from r3_rl.benches.made import write_sets

write_sets("sets")  # then: r3 eval shipped --bench vqav2=sets/vqav2,pope=sets/pope,mme=sets/mme,ita=sets/ita
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from r3_rl.benches.choice import LETTERS
from r3_rl.benches.ita import POOL
from r3_rl.observe.trajectories import to_pixels
from r3_rl.stages.vqa_words import normalised
from r3_rl.worlds.base import Question, World, find_world
from r3_rl.worlds.files.checks import geneval_problems
from r3_rl.worlds.sets import pairs

_TRIES = 12
"""Questions about one image among which a yes and a no are looked for."""


def write_sets(folder: str | Path, *, world: str | None = None, count: int = 16, seed: int = 0) -> Path:
    """Write a set in each format below `folder`: vqav2, okvqa, pope, mme, choice.tsv, ita, coco, tiif.jsonl, dpg.csv
    and, if the world's prompts have GenEval's columns, geneval.jsonl.

    Args:
        folder: is made.
        world: its name; None takes the embedded one.
        count: questions or images of a set, at most.
        seed: 0 or more; the same seed writes the same bytes.
    """
    folder, place = Path(folder), find_world(world)
    asked = place.questions(8 * count, seed=seed)
    _write_vqa(folder / "vqav2", asked[:count], "v2_")
    _write_vqa(folder / "okvqa", asked[count : 2 * count], "")
    closed = [question for question in asked if question.answer in ("yes", "no")]
    _write_pope(folder / "pope", closed[:count])
    _write_mme(folder / "mme", place, max(1, count // 4), seed)
    _write_choice(folder / "choice.tsv", asked, count)
    _write_pool(folder / "ita", place, max(1, count // 2), seed)
    _write_captions(folder / "coco", place, count, seed)
    _write_prompts(folder, place, count, seed)
    return folder


def _write_vqa(folder: Path, asked: Sequence[Question], version: str) -> None:
    """Questions, annotations, images; all ten people agree."""
    questions, annotations = [], []
    for number, question in enumerate(asked, start=1):
        _save(folder / "val2014" / f"COCO_val2014_{number:012d}.jpg", question.image)
        answer = normalised(question.answer)
        questions.append({"image_id": number, "question": question.text, "question_id": 10 * number})
        kind = "yes/no" if answer in ("yes", "no") else "number" if answer.isdigit() else "other"
        annotations.append(
            {
                "question_id": 10 * number,
                "image_id": number,
                "question_type": question.kind,
                "answer_type": kind,
                "multiple_choice_answer": answer,
                "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)],
            }
        )
    head = {"info": {"description": "made by a world"}, "license": {}, "data_type": "mscoco", "data_subtype": "val2014"}
    _dump(folder / f"{version}OpenEnded_mscoco_val2014_questions.json", {**head, "questions": questions})
    _dump(folder / f"{version}mscoco_val2014_annotations.json", {**head, "annotations": annotations})


def _write_pope(folder: Path, asked: Sequence[Question]) -> None:
    rows = []
    for number, question in enumerate(asked, start=1):
        name = f"COCO_val2014_{number:012d}.jpg"
        _save(folder / "val2014" / name, question.image)
        rows.append({"question_id": number, "image": name, "text": question.text, "label": question.answer})
    _lines(folder / "coco_pope_random.json", rows)


def _write_mme(folder: Path, world: World[Any], count: int, seed: int) -> None:
    """A task for each kind of question that is answered by yes or no: images with one of each."""
    rng = np.random.default_rng(seed)
    prompts = world.prompts(4 * count, split="held_out", seed=rng)
    scenes = [world.scene(prompt, rng) for prompt in prompts]
    for kind in world.question_kinds:
        written = 0
        for scene, image in zip(scenes, world.draw(scenes), strict=True):
            tries = [world.ask(image, scene, kind, rng) for _ in range(_TRIES)]
            found = {q.answer: q for q in tries if q is not None and q.kind == kind and q.answer in ("yes", "no")}
            if len(found) == 2 and written < count:
                written += 1
                _save(folder / kind / f"{written:04d}.png", image)
                lines = [f"{found[answer].text}\t{answer.capitalize()}" for answer in ("yes", "no")]
                (folder / kind / f"{written:04d}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_choice(path: Path, asked: Sequence[Question], count: int) -> None:
    """Options are the answers that questions of a kind have."""
    rows = ["\t".join(["index", "question", "hint", *LETTERS[:4], "answer", "category", "image"])]
    for number, question in enumerate(asked):
        others = sorted({q.answer for q in asked if q.kind == question.kind} - {question.answer})[:3]
        if len(others) < 3 or len(rows) > count:
            continue
        place = number % 4
        options = [*others[:place], question.answer, *others[place:]]
        picture = base64.b64encode(_png(question.image)).decode()
        rows.append("\t".join([str(number), question.text, "", *options, LETTERS[place], question.kind, picture]))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def _write_pool(folder: Path, world: World[Any], count: int, seed: int) -> None:
    rows = []
    for number, pair in enumerate(pairs(world, count, seed=seed)):
        for drawn, right in ((pair.right, True), (pair.near_miss, False)):
            name = f"images/{number:04d}-{'right' if right else 'wrong'}.png"
            _save(folder / name, drawn.image)
            rows.append({"image": name, "prompt": drawn.prompt.text, "right": right})
    _lines(folder / POOL, rows)


def _write_captions(folder: Path, world: World[Any], count: int, seed: int) -> None:
    """In COCO's format: captions are prompts, images show what they ask for."""
    rng = np.random.default_rng(seed)
    prompts = world.prompts(count, split="held_out", seed=rng)
    drawn = world.draw([world.scene(prompt, rng) for prompt in prompts])
    images, annotations = [], []
    for number, (prompt, image) in enumerate(zip(prompts, drawn, strict=True), start=1):
        name = f"COCO_val2014_{number:012d}.jpg"
        _save(folder / "val2014" / name, image)
        images.append({"id": number, "file_name": name, "height": image.shape[1], "width": image.shape[2]})
        annotations.append({"id": number, "image_id": number, "caption": prompt.text})
    _dump(folder / "captions_val2014.json", {"info": {}, "licenses": [], "images": images, "annotations": annotations})


def _write_prompts(folder: Path, world: World[Any], count: int, seed: int) -> None:
    """GenEval, TIIF and DPG: prompts with what is to be checked about their images."""
    rng = np.random.default_rng(seed)
    prompts = world.prompts(count, split="held_out", seed=rng)
    if not any(problem for prompt in prompts for problem in geneval_problems(prompt.columns)):
        _lines(folder / "geneval.jsonl", [{"prompt": prompt.text, **prompt.columns} for prompt in prompts])
    tiif, dpg = [], [",".join(["item_id", "text", "proposition_id", "dependency", "question_natural_language"])]
    for number, prompt in enumerate(prompts):
        scene = world.scene(prompt, rng)
        (image,) = world.draw([scene])
        found = [world.ask(image, scene, kind, rng) for kind in list(world.question_kinds) * _TRIES]
        closed = {q.words: q.answer for q in found if q is not None and q.answer in ("yes", "no")}
        questions, answers = list(closed)[:3], list(closed.values())[:3]
        row = {"type": str(prompt.columns.get("tag", "all")), "short_description": prompt.text}
        lists = {"yn_question_list": questions, "yn_answer_list": answers}
        tiif.append({**row, "long_description": prompt.text, **lists})
        for place, words in enumerate([w for w, answer in closed.items() if answer == "yes"][:3], start=1):
            dpg.append(f'made{number},"{prompt.text}",{place},{"0" if place == 1 else "1"},"{words}"')
    _lines(folder / "tiif.jsonl", tiif)
    (folder / "dpg.csv").write_text("\n".join(dpg) + "\n", encoding="utf-8")


def _save(path: Path, image: np.ndarray) -> None:
    """Under the name that is published, whose ending may say JPEG; a PNG inside loses nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_png(image))


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(to_pixels(image)).save(buffer, format="PNG")
    return buffer.getvalue()


def _dump(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


def _lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
