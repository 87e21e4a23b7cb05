"""The runs of a study side by side: each an `r3 train` of its own, gone on with where it was interrupted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from r3_rl.errors import R3Error
from r3_rl.observe.progress import duration
from r3_rl.process import physical_cores
from r3_rl.study.plan import Job

POLL_S = 0.2
GUARD_STOPPED = 3
BASE = "base"
"""Of a study's folder: what the first run measured of the base, and the others read."""


def run_jobs(jobs: Sequence[Job], *, at_once: int) -> list[Job]:
    """Run what is not done, and say of each when it ends and how long the others will take.

    A run that fails leaves the others alone; it is tried again when the study is started again.

    Args:
        jobs: all runs of the study.
        at_once: how many run side by side, at least 1; they share the cores.

    Returns:
        The jobs that failed.

    Raises:
        KeyboardInterrupt: the study was interrupted; its runs have saved and ended.
    """
    left = [job for job in jobs if job.done is None]
    if len(jobs) - len(left):
        print(f"{len(jobs) - len(left)} of {len(jobs)} runs are done already")
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, physical_cores() // at_once))
    running: dict[Job, tuple[subprocess.Popen[bytes], float]] = {}
    failed: list[Job] = []
    begin, num_ended, number = time.monotonic(), 0, len(left)
    with _ends_together(running):
        while left or running:
            while len(running) < at_once and (job := _next(left, running, failed)) is not None:
                try:
                    running[job] = (_start(job, threads), time.monotonic())
                except R3Error as error:  # adapters that cannot be added up
                    failed.append(job)
                    print(f"{job.arm.name}, seed {job.seed}: not begun: {error}", flush=True)
            time.sleep(POLL_S)
            for job, (process, started) in list(running.items()):
                if (code := process.poll()) is None:
                    continue
                del running[job]
                num_ended += 1
                if code or job.done is None:
                    failed.append(job)
                    why = "a guard stopped it" if code == GUARD_STOPPED else _last_line(job)
                    how = f"failed with exit code {code}: {why}; see {job.log}"
                else:
                    how = f"done in {duration(time.monotonic() - started)}"
                left_s = (time.monotonic() - begin) / num_ended * (number - num_ended)
                print(
                    f"run {num_ended}/{number}  {job.arm.name}, seed {job.seed}  {how}  left {duration(left_s)}",
                    flush=True,
                )
    return failed


def _next(left: list[Job], running: Collection[Job], failed: list[Job]) -> Job | None:
    """Take the first run out of `left` that can begin; None if all others wait for one that is running. One whose parts
    have failed fails too."""
    for job in list(left):
        waits_for = [part for part, _ in job.parts if part.done is None]
        if not waits_for:
            left.remove(job)
            return job
        if not any(part in running or part in left for part in waits_for):
            left.remove(job)
            failed.append(job)
            print(f"{job.arm.name}, seed {job.seed}: not begun, since {waits_for[0].arm.name} failed", flush=True)
    return None


def _start(job: Job, threads: str) -> subprocess.Popen[bytes]:
    job.runs.mkdir(parents=True, exist_ok=True)
    overrides = [
        f"training.seed={job.seed}",
        f"training.output_dir={job.runs}",
        f"training.base_measured={job.study / BASE}",
    ]
    if job.parts:
        overrides.append(f"lora.start={_merged(job)}")
    resumed = ["--resume", str(job.interrupted)] if job.interrupted else []
    command = [sys.executable, "-m", "r3_rl", "train", str(job.recipe), *overrides, *resumed]
    with job.log.open("ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": threads}
        )


def _merged(job: Job) -> Path:
    """The sum of the adapters that a run begins from, made anew."""
    from r3_rl.merging import Part, merge_adapters  # torch, which a study of runs alone does without

    shutil.rmtree(job.start, ignore_errors=True)
    merge_adapters([Part(folder=str(part.done), weight=weight) for part, weight in job.parts], job.start)
    return job.start


@contextmanager
def _ends_together(running: dict[Job, tuple[subprocess.Popen[bytes], float]]) -> Iterator[None]:
    """Whatever ends the study ends its runs too: each finishes its step and saves."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except BaseException:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _last_line(job: Job) -> str:
    lines = job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"
