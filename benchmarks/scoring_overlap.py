"""What scoring costs a step when scorers work while the policy draws (`rollout.num_parts`).

A step of the embedded model in two halves (drafts; critiques and refinements, all of them drawn), without the
optimiser, so that every way of scoring sees the same images. Each is timed against the same step whose verdicts are
handed out at once: the difference is what scoring costs, waiting, borrowed processor time and all. Scorers: the world's
inspector in this process, and one behind a real server (`r3 rewards serve`) that sleeps for every image.

    python benchmarks/scoring_overlap.py --help
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from machine import Report, middle
from shapes_step import build

SLEEPER = '''"""A scorer that takes its time."""
import time

from r3_rl.scoring.base import scorer_info


@scorer_info(range=(0.0, 1.0), needs=("images",))
def sleeper(images, *, ms=10.0, **columns):
    time.sleep(ms / 1000 * len(images))
    return [float(image.mean()) / 255 for image in images]
'''


@dataclass(kw_only=True)
class Way:
    """A scorer and the number of parts, over the repetitions."""

    name: str
    panel: Any
    num_parts: int
    step_s: list[float] = field(default_factory=list)
    free_s: list[float] = field(default_factory=list)
    """The same step with verdicts that are there already."""
    waited_s: list[float] = field(default_factory=list)
    ran_s: list[float] = field(default_factory=list)
    """Seconds that the scorer's calls ran."""
    cpu_s: list[float] = field(default_factory=list)
    """Processor seconds of this process, all threads."""
    free_cpu_s: list[float] = field(default_factory=list)

    @property
    def cost_s(self) -> float:
        """Of scoring, as the median over pairs."""
        return middle([a - b for a, b in zip(self.step_s, self.free_s, strict=True)])

    @property
    def cpu_share(self) -> float:
        """Processor seconds of scoring over those of the step, as the median over pairs."""
        return middle([1 - b / a for a, b in zip(self.cpu_s, self.free_cpu_s, strict=True)])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="folder of weights (default: the shipped ones, else random weights)")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=5, help="counted repetitions; medians are shown")
    parser.add_argument("--threads", type=int, default=None, help="default: the physical cores")
    parser.add_argument("--ms", type=float, default=5.0, help="milliseconds the server sleeps for an image")
    parser.add_argument("--inspector-parts", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--server-parts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--out", help="also write the numbers to this JSON file")
    return parser.parse_args()


@contextmanager
def sleeping_server(folder: Path, ms: float) -> Iterator[str]:
    """A server in a process of its own; one call at a time, as behind one GPU."""
    (folder / "sleeper.py").write_text(SLEEPER)
    command = [sys.executable, "-m", "r3_rl", "rewards", "serve", "./sleeper.py:sleeper", "--port", "0"]
    command += ["--params", f"{{ms: {ms}}}", "--workers", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield line.split(" at ")[1].split()[0]
        finally:
            process.terminate()


class Recorded:
    """A panel that answers at once with what another one said, in the same order."""

    def __init__(self, verdicts: Sequence[Any]) -> None:
        self._verdicts = iter(verdicts)

    def submit(self, batch: Any) -> Future[Any]:
        answer: Future[Any] = Future()
        answer.set_result(next(self._verdicts))
        return answer

    def metrics(self) -> dict[str, float]:
        return {}


def one_step(trainer: Any, panel: Any, num_parts: int, number: int) -> tuple[dict[str, float], list[Any]]:
    """Both halves of a step: its numbers summed, and the verdicts in the order of asking."""
    engine = trainer.schedule.engine
    futures: list[Future[Any]] = []

    def submit(batch: Any) -> Future[Any]:
        futures.append(panel.submit(batch))
        return futures[-1]

    trainer.panel, engine.submit, engine.parts = panel, submit, replace(engine.parts, count=num_parts)
    trainer.schedule.pool.groups.clear()
    sums: dict[str, float] = {}
    begin, cpu = time.perf_counter(), time.process_time()
    for half in (2 * number, 2 * number + 1):
        collected = trainer.roll_out(half)
        trainer.updater.accumulate(half, collected.credits)  # without a step: the next repetition has the same rollouts
        seconds = {f"time/{name}_s": value for name, value in trainer.watch.seconds.items()}
        for name, value in {**collected.metrics, **seconds}.items():
            sums[name] = sums.get(name, 0.0) + value
    sums |= {"step_s": time.perf_counter() - begin, "cpu_s": time.process_time() - cpu}
    trainer.learner.zero_grad()
    return sums, [future.result() for future in futures]


def measure(trainer: Any, way: Way, number: int, *, counts: bool) -> None:
    """One repetition: the step with the scorer, and the same step with its verdicts at hand."""
    sums, verdicts = one_step(trainer, way.panel, way.num_parts, number)
    free, _ = one_step(trainer, Recorded(verdicts), way.num_parts, number)
    if counts:
        way.step_s.append(sums["step_s"])
        way.free_s.append(free["step_s"])
        way.cpu_s.append(sums["cpu_s"])
        way.free_cpu_s.append(free["cpu_s"])
        way.waited_s.append(sums["time/score_s"])
        way.ran_s.append(sum(v for k, v in sums.items() if k.startswith("rewards/") and k.endswith("/time_s")))


def main() -> None:
    args = arguments()
    from r3_rl.process import prepare_process

    prepare_process(args.threads)
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    from embedded import find_weights

    from r3_rl.scoring.panel import Panel, ScorerSpec
    from r3_rl.scoring.registry import load_scorer

    with tempfile.TemporaryDirectory() as name, sleeping_server(Path(name), args.ms) as url:
        folder = Path(name)
        weights, origin = find_weights(args.model, folder)
        made = argparse.Namespace(**vars(args), recipe="shapes_r3", dtype="float32", work="all", set=[])
        trainer, _ = build(made, weights, folder)

        def panel(scorer: str, params: dict[str, Any]) -> Any:
            # without `params` in the spec nothing is cached: no repetition profits from an earlier one
            return Panel([ScorerSpec(name="scorer", scorer=load_scorer(scorer, params))])

        inspector, server = panel("shapes", {}), panel("remote", {"url": url})
        slow = f"server, {args.ms:g} ms an image"
        ways = [Way(name="inspector", panel=inspector, num_parts=n) for n in args.inspector_parts]
        ways += [Way(name=slow, panel=server, num_parts=n) for n in args.server_parts]
        for number in range(args.repeat + 1):  # the first warms up
            for way in ways:
                measure(trainer, way, number, counts=number > 0)
        for closing in (inspector, server):
            closing.close()
    report(args, origin, ways, torch.get_num_threads()).show(args.out)


def report(args: argparse.Namespace, origin: str, ways: Sequence[Way], threads: int) -> Report:
    rows, numbers = [], []
    alone = {way.name: middle(way.waited_s) for way in ways if way.num_parts == 1}
    for way in ways:
        step, free, waited, ran = (middle(v) for v in (way.step_s, way.free_s, way.waited_s, way.ran_s))
        cost = way.cost_s
        rows.append(
            [way.name, str(way.num_parts), *(f"{v:.3f}" for v in (free, step, ran, waited, cost)), f"{cost / step:.1%}",
             f"{way.cpu_share:.1%}", f"{1 - waited / alone[way.name]:.0%}" if way.name in alone else ""]
        )  # fmt: skip
        numbers.append({"scorer": way.name, "num_parts": way.num_parts, "step_s": step, "free_s": free, "ran_s": ran,
                        "waited_s": waited, "cost_s": cost, "cpu_share": way.cpu_share})  # fmt: skip
    return Report(
        title=f"What scoring costs a step of twice {args.prompts * args.group} images, {origin}",
        columns=[
            "scorer",
            "parts",
            "step without s",
            "step s",
            "ran s",
            "waited s",
            "costs s",
            "share",
            "processor",
            "hidden",
        ],
        rows=rows,
        notes=[
            f"Medians of {args.repeat} pairs, {threads} threads. 'without': the same step, verdicts at hand.",
            "'costs': difference within a pair; 'share': of the step; 'hidden': of what one part waits; 'processor':",
            "share of the step's processor seconds, which other work on the machine hardly changes.",
        ],
        numbers={"ways": numbers, "threads": threads},
    )


if __name__ == "__main__":
    main()
