"""What a stop saves: the loop with stopped trajectories leaving the batch, against everyone going on to the last round.

The embedded model with its shipped weights, the same prompts and seeds in turns within one process. In the second loop
every critique is read as an edit, so its work is that of a loop without stops.

    python benchmarks/early_stop.py
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace

import torch
from embedded import load_embedded
from machine import Report, middle, spread
from timed_policy import EveryoneEdits

from r3_rl.policy.base import Policy
from r3_rl.rollout.engine import run_loop
from r3_rl.stages.settings import LoopSettings
from r3_rl.types import Prompt
from r3_rl.worlds.shapes.prompts import sample_prompts


@dataclass(frozen=True, kw_only=True)
class Loop:
    """What a loop took and did."""

    seconds: float
    refinements: int
    """Images drawn after the drafts."""
    critiques: int


def run(policy: Policy, prompts: list[Prompt], settings: LoopSettings, rounds: int) -> Loop:
    begin = time.perf_counter()
    with torch.no_grad():
        walked = run_loop(policy, prompts, settings, rounds=rounds, seed=0)
    seconds = time.perf_counter() - begin
    refinements = sum(len(t.rounds) - 1 for t in walked)
    return Loop(
        seconds=seconds,
        refinements=refinements,
        critiques=refinements + sum(t.last_critique is not None for t in walked),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="folder of weights; default the shipped ones")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", help="also write the numbers to this JSON file")
    args = parser.parse_args()
    loaded = load_embedded(args.model)
    prompts = list(sample_prompts(args.prompts, split="held_out", seed=0))
    stopping = loaded.settings
    loops = {
        "drafts alone": (stopping, 0),
        "stops leave": (stopping, args.rounds),
        "everyone goes on": (replace(stopping, protocol=EveryoneEdits(**vars(stopping.protocol))), args.rounds),
    }
    found: dict[str, list[Loop]] = {name: [] for name in loops}
    for turn in range(args.repeats + 1):
        for name, (settings, rounds) in loops.items():
            loop = run(loaded.policy, prompts, settings, rounds)
            if turn:  # the first one chooses kernels
                found[name].append(loop)
    seconds = {name: middle([loop.seconds for loop in of_name]) for name, of_name in found.items()}
    last = {name: of_name[-1] for name, of_name in found.items()}
    rounds_s = {name: seconds[name] - seconds["drafts alone"] for name in ("stops leave", "everyone goes on")}
    work = last["stops leave"].refinements / last["everyone goes on"].refinements
    threads = f"{torch.get_num_threads()} thread(s)"
    Report(
        title=f"{args.prompts} prompts, at most {args.rounds} rounds, {loaded.origin}, {threads}",
        columns=["loop", "seconds", "of turns", "critiques", "refinements"],
        rows=[
            [name, f"{s:.2f}", spread([loop.seconds for loop in found[name]]), *map(str, counts(last[name]))]
            for name, s in seconds.items()
        ],
        notes=[
            f"The rounds after the draft take {rounds_s['stops leave'] / rounds_s['everyone goes on']:.0%} of the time "
            f"of a loop without stops, for {work:.0%} of its refinements."
        ],
        numbers={"seconds": seconds, "rounds_s": rounds_s, "loops": {n: vars(loop) for n, loop in last.items()}},
    ).show(args.out)


def counts(loop: Loop) -> tuple[int, int]:
    return loop.critiques, loop.refinements


if __name__ == "__main__":
    main()
