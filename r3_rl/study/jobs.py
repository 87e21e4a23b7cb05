"""The runs of a study side by side: each an `r3 train` of its own, gone on with where it was interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from r3_rl.observe.progress import duration
from r3_rl.process import physical_cores
from r3_rl.study.plan import Job

POLL_S = 0.2
GUARD_STOPPED = 3


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
            while left and len(running) < at_once:
                job = left.pop(0)
                running[job] = (_start(job, threads), time.monotonic())
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


def _start(job: Job, threads: str) -> subprocess.Popen[bytes]:
    job.runs.mkdir(parents=True, exist_ok=True)
    overrides = [f"training.seed={job.seed}", f"training.output_dir={job.runs}"]
    resumed = ["--resume", str(job.interrupted)] if job.interrupted else []
    command = [sys.executable, "-m", "r3_rl", "train", str(job.recipe), *overrides, *resumed]
    with job.log.open("ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": threads}
        )


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
