"""Recipes against each other over several seeds at one budget of rollouts: what rose, what fell, does reflection last.

Every run is an `r3 train` of its own, with the same held-out sets and the same number of steps of 64 rollouts. A cell
is the mean over the seeds with Student's 95 % interval; below it stand the seeds one by one. Finished runs are kept.

    python benchmarks/shapes_study.py --steps 80 --jobs 2
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from machine import Report

RECIPES = ("shapes_r3", "shapes_draft_only", "shapes_cotrain")
COLUMNS = {
    "draft": ("change", "draft"),
    "final": ("change", "final"),
    "wrong edited": ("change", "wrong_drafts_edited"),
    "wrong repaired": ("change", "wrong_drafts_repaired"),
    "right kept": ("after", "right_drafts_kept"),
    "swap own - base": ("swap", ""),
    "harder: final - draft": ("loop", "harder_"),
    "questions": ("change", "questions"),
}
"""What a column shows: after - before, the share after, edits of own critic - of base critic, what the loop adds."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--prompts", type=int, default=400, help="held-out prompts before and after")
    parser.add_argument("--set", nargs="*", default=[], help="further overrides of every recipe, key=value")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--runs", default="runs/study", help="folder for the runs")
    parser.add_argument("--out", help="also write the numbers to this JSON file")
    return parser.parse_args()


def run(args: argparse.Namespace, recipe: str, seed: int) -> dict[str, Any]:
    """One run's evaluation.json, made unless it is there."""
    target = Path(args.runs) / f"{Path(recipe).stem}-{seed}"
    found = sorted(target.glob("*/evaluation.json"))
    if not found:
        target.mkdir(parents=True, exist_ok=True)
        settings = [
            f"training.output_dir={target}", f"training.seed={seed}", f"training.max_steps={args.steps}",
            f"training.eval_prompts={args.prompts}", f"training.eval_steps={args.steps}",
            f"training.save_steps={args.steps}",
            "training.num_threads=1", *args.set,
        ]  # fmt: skip
        command = [sys.executable, "-c", "from r3_rl.cli import main; main()", "train", recipe, *settings]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (target / "log.txt").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=environment)
        found = sorted(target.glob("*/evaluation.json"))
    return json.loads(found[-1].read_text(encoding="utf-8"))


def value(evaluation: dict[str, Any], kind: str, name: str) -> float:
    """One number of a run, in percentage points."""
    after = evaluation["phases"]["after"]
    if kind == "change":
        return 100 * evaluation["differences"][name]["mean"]
    if kind == "after":
        return 100 * after[name]["mean"]
    if kind == "swap":
        return 100 * (after["swap_own_critic_edits"]["mean"] - after["swap_base_critic_edits"]["mean"])
    return 100 * (after[f"{name}final"]["mean"] - after[f"{name}draft"]["mean"])


def main() -> None:
    from r3_rl.observe.statistics import over_seeds

    args = arguments()
    jobs = [(recipe, seed) for seed in args.seeds for recipe in args.recipes]
    with ThreadPoolExecutor(args.jobs) as pool:
        done = dict(zip(jobs, pool.map(lambda job: run(args, *job), jobs), strict=True))
    rows, numbers = [], {}
    for recipe in args.recipes:
        cells, singles = [], []
        for column, (kind, name) in COLUMNS.items():
            values = [value(done[recipe, seed], kind, name) for seed in args.seeds]
            numbers[f"{Path(recipe).stem}/{column}"] = values
            if len(values) > 1:
                interval = over_seeds(values)
                cells.append(f"{interval.mean:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]")
            else:
                cells.append(f"{values[0]:+.1f}")
            singles.append(" ".join(f"{v:+.1f}" for v in values))
        rows += [[Path(recipe).stem, *cells], ["  seeds", *singles]]
    before = done[jobs[0]]["phases"]["before"]
    base = ", ".join(f"{n} {100 * before[n]['mean']:.1f}" for n in ("draft", "final", "wrong_drafts_edited",
        "wrong_drafts_repaired", "right_drafts_kept", "questions", "harder_draft", "harder_final"))  # fmt: skip
    Report(
        title=f"{args.steps} steps of 64 rollouts, {len(args.seeds)} seeds, {args.prompts} held-out prompts; points",
        columns=["", *COLUMNS],
        rows=rows,
        notes=[f"Base, per cent: {base}.", *([f"With {' '.join(args.set)}."] if args.set else [])],
        numbers=numbers,
    ).show(args.out)


if __name__ == "__main__":
    main()
