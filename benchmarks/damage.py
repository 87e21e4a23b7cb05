"""What a resumed run makes of a damaged checkpoint: every file of the newest one is flipped, cut, emptied, deleted, ...

A tiny run is stopped with two checkpoints, the newer one is damaged, and the run is resumed. Each case ends as one of

    found            one line says what is wrong, the checkpoint before is used, and the run ends bit for bit as it
                     should
    without effect   the checkpoint is used, and the run ends bit for bit as it should
    refused          one line, and nothing is loaded
    silent           it goes on without a word, and ends otherwise
    traceback        something unforeseen was raised

    python benchmarks/damage.py --help
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from machine import Report
from tiny_run import Ended, TinyRun, difference

STEPS, SAVE_STEPS = 4, 1
CUT_AT = 3
"""Step at which the run stood when it was damaged; the checkpoint before it is whole."""


def flip(path: Path) -> None:
    """One bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(path: Path) -> None:
    """The file of the checkpoint before: whole by itself."""
    before = str(path).replace(f"checkpoint-{CUT_AT}", f"checkpoint-{CUT_AT - 1}")
    shutil.copyfile(before, path)


FULL = ("lora.enabled=false", "training.image_learning_rate=null")
OF_A_FILE: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "deleted": Path.unlink,
    "of the one before": swap,
}
OF_THE_FOLDER: dict[str, Callable[[Path], object]] = {
    "a file added": lambda folder: (folder / "model.safetensors").write_bytes(b"x"),
    "a folder added": lambda folder: (folder / "empty").mkdir(),
    "emptied": lambda folder: [path.unlink() for path in folder.rglob("*") if path.is_file()],
    "deleted": shutil.rmtree,
    "renamed to a later step": lambda folder: folder.rename(folder.with_name("checkpoint-9")),
    "a file in its place": lambda folder: [shutil.rmtree(folder), folder.write_text("x")],
}


def verdict(ended: Ended, run: Path, whole: Path) -> str:
    """One of the words above."""
    if ended.traceback or ended.code not in (0, 1, 2):
        return "traceback"
    said = "the checkpoint before it is used" in ended.said
    if ended.code:
        return "refused"
    if difference(run, whole):
        return "said, another result" if said else "silent"
    return "found" if said else "without effect"


def line_of(ended: Ended) -> str:
    """What was said of the damage."""
    lines = [line for line in ended.said.splitlines() if "checkpoint-" in line and "resuming" not in line]
    return lines[0].rpartition("checkpoints/")[2][:100] if lines else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="kinds of damage, such as 'flipped'; all by default")
    parser.add_argument("--full", action="store_true", help="full weights, stored in parts, in place of an adapter")
    parser.add_argument("--out", help="file for the numbers as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = FULL if options.full else ()
        report = measure(TinyRun(Path(folder), steps=STEPS, save_steps=SAVE_STEPS, settings=settings), options.only)
    report.show(options.out)


def measure(tiny: TinyRun, only: list[str]) -> Report:
    """One row a case."""
    whole = tiny.place / "runs" / "whole"
    assert tiny.run(whole).code == 0
    began = tiny.place / "began"
    assert tiny.run(began, steps=CUT_AT).code == 0
    newest = Path("checkpoints") / f"checkpoint-{CUT_AT}"
    at = began / newest
    files = sorted(path.relative_to(at).as_posix() for path in at.rglob("*") if path.is_file())
    cases = [(name, kind, newest / name, OF_A_FILE[kind]) for name in files for kind in OF_A_FILE]
    cases += [("the folder", kind, newest, OF_THE_FOLDER[kind]) for kind in OF_THE_FOLDER]
    rows, found = [], Counter[str]()
    for name, kind, at, damage in cases:
        if only and kind not in only:
            continue
        run = tiny.place / "runs" / "damaged"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(began, run)
        damage(run / at)
        ended = tiny.run(run, resume=True)
        word = verdict(ended, run, whole)
        found[word] += 1
        rows.append((name, kind, word, line_of(ended)))
    return Report(
        title=f"damage to the newest checkpoint, {sum(found.values())} cases",
        columns=("file", "damage", "outcome", "said"),
        rows=rows,
        notes=[", ".join(f"{word} {count}" for word, count in sorted(found.items()))],
        numbers={"outcomes": dict(found), "cases": [list(row) for row in rows]},
    )


if __name__ == "__main__":
    main()
