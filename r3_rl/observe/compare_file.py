"""The figures of several runs as a file for other programs: CSV or JSON, a line for each figure of each run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from r3_rl.errors import InputError
from r3_rl.observe.compare import Shown, read_runs
from r3_rl.observe.measures import unit_of
from r3_rl.observe.recorder import write_document
from r3_rl.observe.statistics import Interval

PHASES = ("before", "after", "change", "minus_first")
"""What a line holds, each as mean, low, high and count; `minus_first` is after training, less the first run's."""
COLUMNS = ("figure", "unit", "run", "seed", *(f"{p}_{part}" for p in PHASES for part in ("mean", "low", "high", "n")))
KINDS = (".csv", ".json")


def check_comparison(path: Path) -> None:
    """Raises InputError where `write_comparison` could not write."""
    if path.suffix not in KINDS:
        raise InputError(f"{path}: a comparison is written as {' or '.join(KINDS)}", hint="name the file so")
    if not path.absolute().parent.is_dir():
        raise InputError(f"no folder {path.parent} for {path.name}", hint="make it, or name another file")


def write_comparison(folders: Sequence[str | Path], path: Path) -> None:
    """Write what `compare` shows, kinds of prompts and questions included.

    Shares are in [0, 1]. Runs with other items have lines of their own figures, and figures that `compare` leaves out
    have none.

    Args:
        folders: of two or more finished runs.
        path: ends with one of KINDS.

    Raises:
        InputError: as `compare` and `check_comparison`.
    """
    check_comparison(path)
    rows = list(_rows(folders))
    if path.suffix == ".json":
        text = json.dumps(rows, indent=1) + "\n"
    else:
        out = io.StringIO()
        writer = csv.DictWriter(out, fieldnames=COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = out.getvalue()
    write_document(path, text)


def _rows(folders: Sequence[str | Path]) -> Iterator[dict[str, Any]]:
    runs = read_runs(folders)
    shown = Shown(runs)
    for name in dict.fromkeys(name for run in runs for name in run.evaluation.names()):
        figures = shown.figures(name)
        if not figures:
            continue
        others = [None, *(change for change, _ in shown.against_first(name, figures))]
        for run, figure, other in zip(runs, figures, others, strict=True):
            row = {
                "figure": name,
                "unit": unit_of(name),
                "run": str(run.folder),
                "seed": run.recipe.get("training.seed"),
            }
            found = (figure.before, figure.after, figure.difference, other)
            for phase, interval in zip(PHASES, found, strict=True):
                row |= _parts(phase, interval)
            yield row


def _parts(phase: str, interval: Interval | None) -> dict[str, float | int | None]:
    values = (None,) * 4 if interval is None else (interval.mean, interval.low, interval.high, interval.count)
    return {f"{phase}_{part}": value for part, value in zip(("mean", "low", "high", "n"), values, strict=True)}
