"""Writes a run folder: metrics and trajectories line by line, documents whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from r3_rl.errors import InputError, RunError
from r3_rl.observe.trajectories import SeenRound, pick_trajectories, see
from r3_rl.recipe.base import default
from r3_rl.recipe.running import ObserveSection
from r3_rl.types import Trajectory

KEPT_TRAJECTORIES: int = default(ObserveSection, "keep_trajectories")
KEPT_IMAGE_PX = 384
"""Longest side of a kept image; larger ones are scaled down, since a run may keep thousands."""
PHASES = ("train", "before", "during", "after")


def new_run_folder(base: str | Path, name: str) -> Path:
    """Make a run folder that did not exist: `base/name`, else `base/name-2`, `base/name-3`, ...

    Args:
        base: folder of runs; made when missing.
        name: a single folder name.

    Raises:
        InputError: when `name` is not a plain folder name or `base` is a file.
    """
    if not name or name in (".", "..") or set(name) & set("/\\\0"):
        raise InputError(f"{name!r} is not a folder name", hint="name the run with letters, digits, - and _")
    base = Path(base)
    with _clear_errors(base):
        base.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            folder = base / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
                continue
            (folder / "images").mkdir()
            return folder


@dataclass(frozen=True, kw_only=True)
class Lines:
    """What could be read of a file with one JSON object per line."""

    rows: list[dict[str, Any]]
    num_broken: int
    """Lines that are no JSON object; a crash may leave one at the end."""


def read_lines(path: str | Path) -> Lines:
    """Read `metrics.jsonl` or `trajectories.jsonl`; a missing file has no lines."""
    path = Path(path)
    if not path.is_file():
        return Lines(rows=[], num_broken=0)
    rows, num_broken = [], 0
    # not splitlines: it also cuts at U+2028, U+2029 and U+0085, which a JSON string may hold as they are
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for line in lines if lines[-1] else lines[:-1]:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        else:
            num_broken += 1
    return Lines(rows=rows, num_broken=num_broken)


def row_of(step: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """Make a line of `metrics.jsonl`: a value that is not finite becomes null and its name joins the `not_finite` list.

    Args:
        step: counts from 1.
        values: numbers, or tensors of one element; None is left out.

    >>> row_of(1, {"kl": math.nan, "loss": 0.5, "reward": None})
    {'step': 1, 'kl': None, 'loss': 0.5, 'not_finite': ['kl']}
    """
    assert "step" not in values and "not_finite" not in values
    numbers = {name: _plain(value) for name, value in values.items() if value is not None}
    broken = sorted(name for name, value in numbers.items() if not math.isfinite(value))
    row: dict[str, Any] = {"step": int(step), **numbers, **dict.fromkeys(broken)}
    return {**row, "not_finite": broken} if broken else row


def write_document(path: str | Path, content: Mapping[str, Any] | str) -> None:
    """Write a whole file aside, then rename: a crash leaves the old file or the new one, never half of one.

    Args:
        path: of the file; its folder exists.
        content: text as it is, or a mapping as indented JSON.

    Raises:
        RunError: when the disk is full.
        ValueError: when the mapping holds a number that is not finite, which JSON cannot say.
    """
    path = Path(path)
    text = content if isinstance(content, str) else json.dumps(content, indent=2, allow_nan=False) + "\n"
    aside = path.with_name(f".{path.name}.partial")
    with _clear_errors(path):
        with aside.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)


class Recorder:
    """Appends to the run folder while the run goes on. One process of a run holds one.

    Args:
        run_folder: as `new_run_folder` made it, or that of a run that is resumed.
        keep_trajectories: most trajectories kept for one step and phase.
        resume_step: when resuming, the step of the checkpoint; lines of later steps, which are about to be made
            again, are dropped.

    Raises:
        InputError: when the folder does not exist.
    """

    def __init__(
        self, run_folder: str | Path, *, keep_trajectories: int = KEPT_TRAJECTORIES, resume_step: int | None = None
    ) -> None:
        self.run_folder = Path(run_folder)
        self.keep_trajectories = keep_trajectories
        if not self.run_folder.is_dir():
            raise InputError(f"no run folder at {run_folder}", hint="give the folder that `r3 train` printed")
        with _clear_errors(self.run_folder):
            (self.run_folder / "images").mkdir(exist_ok=True)
        for name in ("metrics.jsonl", "trajectories.jsonl", "conflict.jsonl", "gates.jsonl"):
            self._tidy(self.run_folder / name, resume_step)

    def metrics(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Append one line, as `row_of` makes it.

        Args:
            step: counts from 1.
            values: numbers, or tensors of one element; None is left out.

        Returns:
            The line as written.

        Raises:
            RunError: when the disk is full.
        """
        row = row_of(step, values)
        self._append("metrics.jsonl", row)
        return row

    def conflict(self, step: int, found: Mapping[str, Any]) -> None:
        """Append how the objectives' gradients stood to each other in a step, counted from 1 (`balance.conflict`)."""
        self._append("conflict.jsonl", {"step": int(step), **found})

    def gates(self, step: int, found: Mapping[str, Any]) -> None:
        """Append the gates of an adapter that is routed by task, of a step, counted from 1 (`balance.gates`)."""
        self._append("gates.jsonl", {"step": int(step), **found})

    def trajectories(self, step: int, trajectories: Sequence[Trajectory], phase: str = "train") -> None:
        """Keep the best, the worst and some random ones of a step (`keep_trajectories` in all)."""
        for pick in pick_trajectories(trajectories, self.keep_trajectories):
            self.trajectory(step, trajectories[pick.index], phase=phase, kept_as=pick.kept_as)

    def trajectory(self, step: int, trajectory: Trajectory, *, phase: str = "train", kept_as: str = "random") -> None:
        """Write the images of one trajectory and append its line.

        Args:
            step: counts from 1; 0 before training.
            trajectory: with verdicts where it was scored.
            phase: `train`, or an evaluation on held-out prompts: `before`, `during` or `after` training.
            kept_as: `best`, `worst` or `random`.

        Raises:
            RunError: when the disk is full.
        """
        assert phase in PHASES, phase
        seen = see(trajectory)
        rounds = [self._round(this) for this in seen.rounds]
        self._append(
            "trajectories.jsonl",
            {
                "step": int(step),
                "phase": phase,
                "kept_as": kept_as,
                "prompt": seen.prompt,
                "tag": seen.tag,
                "rounds": rounds,
            },
        )

    def document(self, name: str, content: Mapping[str, Any] | str) -> None:
        """Write `summary.json`, `environment.json`, `recipe.resolved.yaml`, ... whole or not at all."""
        write_document(self.run_folder / name, content)

    def _round(self, this: SeenRound) -> dict[str, Any]:
        assert this.pixels is not None
        row: dict[str, Any] = {
            "image": self._image(this.pixels),
            "score": _finite_or_none(this.score),
            "scores": {name: _finite_or_none(score) for name, score in this.scores.items()},
            "words": this.words,
            "stop": this.stop,
        }
        if this.plan:
            row["plan"] = this.plan
        if this.critique is not None:
            row |= {"critique": this.critique, "instruction": this.instruction, "well_formed": this.well_formed}
        return row

    def _image(self, pixels: np.ndarray) -> str:
        """Write a small PNG under a name made from its content, so that equal images share a file."""
        image = Image.fromarray(pixels)
        if max(image.size) > KEPT_IMAGE_PX:
            image.thumbnail((KEPT_IMAGE_PX, KEPT_IMAGE_PX))
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        name = hashlib.sha256(buffer.getvalue()).hexdigest()[:32] + ".png"
        path = self.run_folder / "images" / name
        if not path.exists():
            aside = path.with_suffix(".partial")
            with _clear_errors(path):
                aside.write_bytes(buffer.getvalue())
                aside.replace(path)
        return name

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        path = self.run_folder / name
        with _clear_errors(path), path.open("a", encoding="utf-8") as stream:
            stream.write(_line(row))

    def _tidy(self, path: Path, resume_step: int | None) -> None:
        """Drop half a line that a crash left at the end, and lines after the checkpoint that is resumed."""
        if not path.is_file():
            return
        rows, last = read_lines(path).rows, math.inf if resume_step is None else resume_step
        kept = "".join(_line(row) for row in rows if row["step"] <= last)
        if kept != path.read_text(encoding="utf-8", errors="replace"):
            write_document(path, kept)


def _line(row: Mapping[str, Any]) -> str:
    """A row as one line, for readers too that cut lines at more characters than a newline (`str.splitlines`); half of a
    surrogate pair, which no file in UTF-8 holds, stays as its code."""
    text = json.dumps(row, allow_nan=False, ensure_ascii=False)
    return re.sub("[\x85\u2028\u2029\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"


def _plain(value: Any) -> float | int:
    # A tensor or numpy scalar turns into the Python number; int stays int so that counts read as counts.
    number = value.item() if hasattr(value, "item") else value
    return int(number) if isinstance(number, bool | int) else float(number)


def _finite_or_none(score: float | None) -> float | None:
    return None if score is None or not math.isfinite(score) else float(score)


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Turn what the disk says into one line that a person can act on."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"the disk is full, {path.name} could not be written", hint="free some space, then resume the run"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise InputError(f"cannot write to {path}: {error.strerror}", hint="choose another folder") from error
        raise RunError(f"{path} could not be written: {error.strerror or error}") from error
