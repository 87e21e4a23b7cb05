"""Where benchmarks are published, and what a reader is told whose files are missing or broken."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from r3_rl.benches.base import Request
from r3_rl.errors import DataError, InputError, one_line

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A benchmark as its authors published it."""

    name: str
    """As `--bench` says it."""
    where: str
    """The page of its authors; empty if the files are a user's own."""
    fetch: str
    """The files that are read, with their published names."""
    licence: str
    """As far as it is known."""

    def how_to_get(self, what: str = "") -> str:
        """The end of an error's line. `what` is the file, if it is not all of `fetch`.

        >>> COCO.how_to_get("it")
        'fetch it from cocodataset.org'
        """
        return f"fetch {what or self.fetch} from {self.where}" if self.where else f"give {self.fetch}"


VQAV2 = Published(
    name="vqav2",
    where="visualqa.org/download.html",
    fetch="v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json and COCO's val2014/",
    licence="annotations CC BY 4.0; images under their Flickr licences",
)
OKVQA = Published(
    name="okvqa",
    where="okvqa.allenai.org/download.html",
    fetch="OpenEnded_mscoco_val2014_questions.json, mscoco_val2014_annotations.json and COCO's val2014/",
    licence="not stated by its authors; images under their Flickr licences",
)
POPE = Published(
    name="pope",
    where="github.com/RUCAIBox/POPE, output/coco",
    fetch="coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json and COCO's val2014/",
    licence="MIT (questions); images under their Flickr licences",
)
MME = Published(
    name="mme",
    where="github.com/BradyFU/Awesome-Multimodal-Large-Language-Models, branch Evaluation, by request",
    fetch="one folder a task with images and, beside them or in questions_answers_YN/, a .txt of two lines each",
    licence="for academic research only",
)
CHOICE = Published(
    name="choice",
    where="github.com/open-compass/MMBench",
    fetch="a .tsv with index, question, A, B, ..., answer and image (base64), such as mmbench_dev_en.tsv",
    licence="MMBench: Apache-2.0 (code); images from several sources",
)
GENEVAL = Published(
    name="geneval",
    where="github.com/djghosh13/geneval, prompts/",
    fetch="evaluation_metadata.jsonl (553 prompts)",
    licence="MIT (prompts)",
)
GENEVAL_PLUS = Published(
    name="geneval_plus",
    where="github.com/yejy53/Echo-4o",
    fetch="the JSON lines of GenEval++ (280 prompts)",
    licence="not stated by its authors",
)
TIIF = Published(
    name="tiif",
    where="github.com/A113N-W3I/TIIF-Bench",
    fetch="the JSON lines of its test prompts, one file or several joined",
    licence="not stated by its authors",
)
DPG = Published(
    name="dpg",
    where="github.com/TencentQQGYLab/ELLA, dpg_bench/",
    fetch="dpg_bench.csv (1,065 prompts)",
    licence="Apache-2.0 (code)",
)
COCO = Published(
    name="coco",
    where="cocodataset.org",
    fetch="captions_val2014.json and val2014/",
    licence="annotations CC BY 4.0; images under their Flickr licences",
)
ITA = Published(
    name="ita",
    where="",
    fetch='JSON lines {"image": ..., "prompt": ..., "right": true}, or samples.jsonl of an earlier evaluation',
    licence="that of your images",
)


def given_path(request: Request, published: Published) -> Path:
    """Return the path of a bench's files.

    Raises:
        InputError: none was given, or there is nothing; the line says what to fetch from where.
    """
    name = published.name
    if request.path is None:
        raise InputError(f"bench '{name}' reads files: give {name}=PATH", hint=published.how_to_get())
    if not request.path.exists():
        raise missing(request.path, published)
    return request.path


def missing(path: Path, published: Published) -> DataError:
    """Return the error for a file that is not there: only that one is to be fetched, if it is published by its name."""
    others = [p.name for p in path.parent.glob("*") if p.name not in published.fetch]
    near = difflib.get_close_matches(path.name, others, n=1, cutoff=0.7)
    guess = f"did you mean {near[0]!r}? " if near else ""
    what = "it" if path.name in published.fetch else ""
    return DataError(f"bench '{published.name}': {path} is missing", hint=guess + published.how_to_get(what))


def read_json(path: Path, published: Published) -> Any:
    """Return what a JSON file holds.

    Raises:
        DataError: a file that is missing or broken; the line names the place.
    """
    text = _read(path, published)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            hint = "JSON lines? This bench reads one document"
        else:
            hint = "fetch it again, the download may have been cut off"
        raise DataError(f"{path}:{error.lineno}: not JSON, {error.msg.lower()}", hint=hint) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({one_line(str(error), 80)})") from None


def read_lines(path: Path, published: Published) -> list[tuple[int, dict[str, Any]]]:
    """Return the objects of JSON lines with their line numbers."""
    rows = []
    for number, line in enumerate(_read(path, published).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{path}:{number}: not a line of JSON", hint="one object a line") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: not an object", hint="one object a line")
        rows.append((number, row))
    if not rows:
        raise DataError(f"{path}: nothing in it", hint=published.how_to_get())
    return rows


def field(row: Any, name: str, kind: type[Value], place: str) -> Value:
    """Return a field of a row.

    Args:
        row: a parsed object.
        name: of the field.
        kind: what it must be.
        place: of the row, such as `FILE: questions[3]`.

    Raises:
        DataError: it is missing or something else.
    """
    if not isinstance(row, dict):
        raise DataError(f"{place}: not an object")
    if name not in row:
        near = difflib.get_close_matches(name, [str(key) for key in row], n=1, cutoff=0.6)
        there = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(map(str, list(row)[:8])) or 'nothing'}"
        raise DataError(f"{place}: no field '{name}'", hint=there)
    value = row[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        words = {str: "text", int: "a whole number", list: "a list", dict: "an object", bool: "true or false"}
        raise DataError(f"{place}: {name} is {one_line(json.dumps(value), 40)}, not {words.get(kind, kind.__name__)}")
    return value


def find_image(name: str, folders: Sequence[Path], published: Published, place: str) -> Path:
    """Return the file of an image in the first of the folders that has it.

    Raises:
        DataError: none of them has it.
    """
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    common = Path(os.path.commonpath(folders))
    below = [f"{folder.relative_to(common)}/" for folder in folders if folder != common]
    looked = f"{common} ({', '.join([*below, *(['itself'] if common in folders else [])])})" if below else str(common)
    of_coco = "COCO" in published.fetch
    hint = "fetch COCO's val2014/ from cocodataset.org" if of_coco else published.how_to_get()
    raise DataError(f"{place}: no image {name} in {looked}", hint=hint)


def _read(path: Path, published: Published) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise missing(path, published) from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text", hint="unpack it if it is an archive") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
