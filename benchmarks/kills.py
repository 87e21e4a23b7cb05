"""Whether a run that is killed again and again ends as one that nobody disturbed, bit for bit.

A tiny run, or one of its processes, is killed with SIGKILL: at a random moment, while a checkpoint is being saved, and
just after it was resumed. It is resumed after each kill, until it ends; then its adapter, its optimiser and its metrics
are compared with those of an undisturbed run.

    python benchmarks/kills.py --help
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from machine import Report
from tiny_run import TinyRun, difference

STEPS, SAVE_STEPS = 6, 1
KINDS = ("at a random moment", "while saving", "while resuming")
PATIENCE_S = 60.0
"""For the other processes of a run to end by themselves after one was killed."""
LOOK_S = 0.0005
"""How often the folder is looked at for a save that has begun."""


def kill(tiny: TinyRun, run: Path, kind: str, seconds: float, rng: random.Random) -> bool:
    """Start or resume the run and kill it; returns whether it was still running. seconds: of an undisturbed run."""
    resume = any((run / "checkpoints").glob("checkpoint-*"))
    if not resume:
        shutil.rmtree(run, ignore_errors=True)  # nothing was saved: it starts again
    pids = tiny.start(run, resume=resume)
    pid = rng.choice(pids)
    begin = time.monotonic()
    moment = rng.uniform(0.0, 0.25 * seconds if kind == "while resuming" else seconds)
    while not os.waitpid(pid, os.WNOHANG)[0]:
        partial = next((run / "checkpoints").glob(".checkpoint-*.partial"), None) if kind == "while saving" else None
        if partial or (kind != "while saving" and time.monotonic() - begin > moment):
            time.sleep(rng.uniform(0, 0.01) if partial else 0)  # some files are there, or all but the manifest
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            _end([each for each in pids if each != pid])
            return True
        time.sleep(LOOK_S)
    tiny.wait(run, [each for each in pids if each != pid])
    return False


def _end(pids: list[int]) -> None:
    """End whoever has not ended by itself, as a launcher does: one that waits for another to join hears nothing."""
    end = time.monotonic() + PATIENCE_S
    while pids and time.monotonic() < end:
        pids = [pid for pid in pids if not os.waitpid(pid, os.WNOHANG)[0]]
        time.sleep(0.05)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how many in all")
    parser.add_argument("--each", type=int, default=3, help="of one run, one of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--processes", type=int, default=1, help="of a run; one of them is killed, the others end")
    parser.add_argument("--full", action="store_true", help="full weights, written while training goes on")
    parser.add_argument("--out", help="file for the numbers as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # every second step, or the next one would wait for the checkpoint
        how = {"save_steps": 2, "settings": ["lora.enabled=false"]} if options.full else {"save_steps": SAVE_STEPS}
        tiny = TinyRun(Path(folder), steps=STEPS, processes=options.processes, **how)
        report = measure(tiny, options.kills, options.each, random.Random(options.seed))
    report.show(options.out)


def measure(tiny: TinyRun, kills: int, each: int, rng: random.Random) -> Report:
    """One row a run."""
    whole = tiny.place / "runs" / "whole"
    begin = time.monotonic()
    assert tiny.run(whole).code == 0
    seconds = time.monotonic() - begin
    rows, found, total, tried = [], Counter[str](), 0, 0
    while total < kills and tried < 2 * kills:  # some runs end before they are killed
        run = tiny.place / "runs" / f"killed-{len(rows)}"
        killed = Counter[str]()
        for index in range(min(each, kills - total)):
            kind = KINDS[(tried + index) % len(KINDS)]
            killed[kind] += kill(tiny, run, kind, seconds, rng)
        resumable = any((run / "checkpoints").glob("checkpoint-*"))
        if not resumable:  # nothing was saved: it starts again
            shutil.rmtree(run, ignore_errors=True)
        ended = tiny.run(run, resume=resumable)
        word = "traceback" if ended.traceback else f"code {ended.code}" if ended.code else ""
        word = word or difference(run, whole) or "bit-equal"
        left = sorted(path.name for path in (run / "checkpoints").glob(".*"))
        found[word] += 1
        total, tried = total + killed.total(), tried + max(killed.total(), 1)
        rows.append((run.name, ", ".join(f"{n} {kind}" for kind, n in killed.items() if n), word, ", ".join(left)))
        shutil.rmtree(run, ignore_errors=True)
    return Report(
        title=f"runs killed with SIGKILL, {total} kills",
        columns=("run", "killed", "outcome", "left behind"),
        rows=rows,
        notes=[", ".join(f"{word} {count}" for word, count in sorted(found.items()))],
        numbers={"outcomes": dict(found), "kills": total, "runs": [list(row) for row in rows]},
    )


if __name__ == "__main__":
    main()
