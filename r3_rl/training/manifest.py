"""The manifest of a checkpoint: the size and sha256 of every file, written last and checked before anything is loaded.

A checkpoint is written aside, flushed to the disk file by file, and renamed when all of it is there. So a folder under
a checkpoint's name is whole, or the disk or somebody has changed it since, and the manifest says where.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r3_rl.errors import CheckpointError

MANIFEST = "manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_VERSION = 1
_READERS = 4
"""Hashing lets go of the interpreter, so large files are read side by side."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose files are those that were saved; `checked` makes one."""

    folder: Path
    step: int
    """Of the run, when it was saved."""
    num_processes: int
    """That saved it."""


def aside(folder: Path) -> Path:
    """An empty folder in which the checkpoint `folder` is written; what a crash left there is removed."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def complete(partial: Path, folder: Path, *, step: int, num_processes: int) -> None:
    """Write the manifest of what lies in `partial`, flush all of it to the disk, and give it its name.

    Args:
        partial: as `aside` made it, with every file in it.
        folder: the checkpoint; a folder that has this name is replaced.
        step, num_processes: kept in the manifest.
    """
    names = sorted(_files(partial))
    with ThreadPoolExecutor(_READERS) as readers:
        rows = dict(zip(names, readers.map(lambda name: _entry(partial / name, flush=True), names), strict=True))
    content = {"version": _VERSION, "step": step, "num_processes": num_processes, "files": rows}
    (partial / MANIFEST).write_text(json.dumps({**content, "sha256": _digest(content)}, indent=1), encoding="utf-8")
    for path in (partial / MANIFEST, *(path for path in partial.rglob("*") if path.is_dir()), partial):
        _flush(path)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    _flush(folder.parent)


def numbered(run: Path) -> list[Path]:
    """What has a checkpoint's name in the folder of a run's checkpoints, whole or not, by step."""
    return sorted((path for path in run.glob("checkpoint-*") if _NAME.fullmatch(path.name)), key=step_of)


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name.

    >>> step_of(Path("runs/mine/checkpoints/checkpoint-50"))
    50
    """
    return int(folder.name.rpartition("-")[2])


def checked(folder: Path) -> Checkpoint:
    """Read every file of a checkpoint and compare it with the manifest.

    Raises CheckpointError, one line that names what is wrong: a manifest that is missing or changed, a file that is
    missing, surplus, shorter, longer or changed, and a folder whose name says another step.
    """
    try:
        manifest = _read(folder)
        problem = _difference(folder, manifest["files"])
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from error
    step, num_processes = int(manifest["step"]), int(manifest["num_processes"])
    if not problem and _NAME.fullmatch(folder.name) and step_of(folder) != step:
        problem = f"it was saved at step {step} and renamed since"
    if problem:
        raise CheckpointError(f"{folder} is damaged: {problem}")
    return Checkpoint(folder=folder, step=step, num_processes=num_processes)


def newest_whole(run: Path, *, below: int | None = None) -> tuple[Checkpoint | None, list[CheckpointError]]:
    """The newest checkpoint of a run that is whole, and what is wrong with those that are newer.

    Args:
        run: the folder of the run's checkpoints.
        below: look at earlier steps alone.
    """
    problems: list[CheckpointError] = []
    for folder in reversed(numbered(run)):
        if below is not None and step_of(folder) >= below:
            continue
        try:
            return checked(folder), problems
        except CheckpointError as error:
            problems.append(error)
    return None, problems


def _read(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder} is no whole checkpoint: it has no {MANIFEST}, which is written last")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        manifest = json.loads(text)
        digest = manifest.pop("sha256")
        if manifest["version"] == _VERSION and digest == _digest(manifest):
            return manifest  # type: ignore[no-any-return]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise CheckpointError(f"{folder} is damaged: {MANIFEST} has changed since it was saved")


def _difference(folder: Path, rows: Mapping[str, Any]) -> str:
    """The first file that is not what was saved, as words; cheap looks at all files come first."""
    there = _files(folder) - {MANIFEST}
    if missing := sorted(rows.keys() - there):
        return f"{missing[0]} is missing"
    if surplus := sorted(there - rows.keys()):
        return f"{surplus[0]} was not saved with it; take it away"
    for name, row in sorted(rows.items()):
        if (size := (folder / name).lstat().st_size) != row["bytes"]:
            return f"{name} has {size:,} bytes instead of {row['bytes']:,}"
    names = sorted(rows)
    with ThreadPoolExecutor(_READERS) as readers:
        for name, entry in zip(names, readers.map(lambda name: _entry(folder / name), names), strict=True):
            if entry != rows[name]:
                return f"{name} has changed since it was saved"
    return ""


def _files(folder: Path) -> set[str]:
    """Everything below that is no folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def _entry(path: Path, *, flush: bool = False) -> dict[str, Any]:
    if not path.is_file():  # a pipe would never end
        return {}
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if flush:
            os.fsync(stream.fileno())
        return {"bytes": path.stat().st_size, "sha256": digest}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
