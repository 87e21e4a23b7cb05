"""What several processes cost: one against two, with weights whole and in shards, on the embedded model.

Each line trains the same step of `shapes_r3` (the same prompts and seeds, so that two processes have half of them each)
with a thread a process. On one machine of two cores it shows overhead, not what a network costs.

    python benchmarks/sharding.py --help
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import Report, middle

WHOLE = ("lora.enabled=false", "training.learning_rate=1e-5", "training.image_learning_rate=1e-5")
PLAIN = ("algorithm.tree.reason_steps=1", "algorithm.tree.node_choice=uniform", "balance.probe_every=0",
         "observe.gallery=0", "training.num_threads=1")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """A line of the table."""

    name: str
    processes: int
    settings: tuple[str, ...] = ()


CASES = (
    Case(name="adapter, 1 process", processes=1),
    Case(name="adapter, 2 processes", processes=2),
    Case(name="adapter, 2, base in shards", processes=2, settings=("training.parallel.kind=fsdp2",)),
    Case(name="full weights, 1 process", processes=1, settings=(*WHOLE, "training.parallel.kind=single")),
    Case(name="full weights, 1, FSDP2", processes=1, settings=(*WHOLE, "training.parallel.kind=fsdp2")),
    Case(name="full weights, 2, FSDP2", processes=2, settings=(*WHOLE, "training.parallel.kind=fsdp2")),
    Case(
        name="full weights, 2, kept whole",
        processes=2,
        settings=(*WHOLE, "training.parallel.kind=fsdp2", "training.parallel.keep_gathered=true"),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=6, help="that are counted, after two that warm up")
    parser.add_argument("--only", default="", help="cases whose names have this in them")
    parser.add_argument("--out", help="file for the numbers as JSON")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="settings to change")
    given = parser.parse_args()
    if given.child:
        _child(given.child, given.overrides, given.steps)
        return
    found = {case: _run(case, given.overrides, given.steps) for case in CASES if given.only in case.name}
    _report(found).show(given.out)


def _run(case: Case, overrides: Sequence[str], steps: int) -> list[dict[str, Any]]:
    """What each process of a case found."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = [sys.executable, __file__, "--child", folder, "--steps", str(steps), *PLAIN, *case.settings]
        started = [
            subprocess.Popen(
                [*command, *overrides],
                env={
                    **os.environ,
                    **{"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
                    **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(case.processes)},
                },
                stdout=subprocess.DEVNULL,
            )
            for rank in range(case.processes)
        ]
        if any([process.wait() for process in started]):
            raise SystemExit(f"{case.name} failed")
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(case.processes)]


def _child(folder: str, overrides: Sequence[str], steps: int) -> None:
    from r3_rl import joining, ranks
    from r3_rl.assemble import load_policy
    from r3_rl.evaluate.build import build_trainer
    from r3_rl.observe.memory import peak_bytes
    from r3_rl.recipe_io import load_recipe

    joining.join()
    recipe = load_recipe("shapes_r3", overrides)
    trainer = build_trainer(recipe, load_policy(recipe.model, world=recipe.data.world), Path(folder) / "run")
    trainer.prepare()
    passes = _counted(trainer)
    rows = []
    for number in range(steps + 2):
        passes.update(working=0, idle=0)
        ranks.total(0.0)  # all begin together
        begin, used = time.perf_counter(), time.process_time()
        collected = trainer.roll_out(number)
        rolled_out = time.perf_counter()
        trainer.updater.learn(number, collected.credits)
        rows.append({
            "roll out": rolled_out - begin, "update": time.perf_counter() - rolled_out,
            "processor": time.process_time() - used, **passes,
        })  # fmt: skip
    found = {"rows": rows[2:], "peak": peak_bytes(next(trainer.policy.module.parameters()).device)}
    (Path(folder) / f"{ranks.rank()}.json").write_text(json.dumps(found))
    trainer.close()
    joining.leave()


def _counted(trainer: Any) -> dict[str, int]:
    """Counts the micro-batches that are replayed, and those that weigh nothing."""
    passes, policy = {"working": 0, "idle": 0}, trainer.policy
    replay, dummies = policy.replay, trainer.updater.batcher.dummies

    def watched(segments: Any) -> Any:
        idle = all(any(segment is dummy.segment for dummy in dummies.values()) for segment in segments)
        passes["idle" if idle else "working"] += 1
        return replay(segments)

    policy.replay = watched
    return passes


def _report(found: dict[Case, list[dict[str, Any]]]) -> Report:
    rows, numbers = [], dict[str, Any]()
    first: dict[bool, float] = {}
    for case, processes in found.items():
        steps = [max(p["rows"][i]["roll out"] + p["rows"][i]["update"] for p in processes) for i in _places(processes)]
        out = [max(p["rows"][i]["roll out"] for p in processes) for i in _places(processes)]
        used = [sum(p["rows"][i]["processor"] for p in processes) for i in _places(processes)]
        counts = {kind: sum(row[kind] for p in processes for row in p["rows"]) for kind in ("working", "idle")}
        share = counts["idle"] / max(sum(counts.values()), 1)
        base = first.setdefault(case.name.startswith("full"), middle(used))
        rows.append([
            case.name, f"{middle(steps):.2f}", f"{middle(out):.2f}", f"{middle(used):.2f}",
            f"{middle(used) / base:.2f}", f"{100 * share:.1f}", " ".join(f"{p['peak'] / 1e6:.0f}" for p in processes),
        ])  # fmt: skip
        numbers[case.name] = {"steps": steps, "processor": used, **counts, "peaks": [p["peak"] for p in processes]}
    columns = ["", "s a step", "roll out", "processor s", "of 1 process", "idle %", "peak MB"]
    notes = [
        "Medians. Seconds by the clock are those of the slower process; processor seconds are those of all of them.",
        "Idle: passes of the update that weigh nothing, so that processes with less to learn from keep in step.",
        "Peak: largest resident memory of each process, imports included.",
    ]
    return Report(title="One process and two", columns=columns, rows=rows, notes=notes, numbers=numbers)


def _places(processes: Sequence[dict[str, Any]]) -> range:
    return range(len(processes[0]["rows"]))


if __name__ == "__main__":
    main()
