"""Recipes against each other over several seeds at one budget of rollouts: what rose, what fell, does reflection last.

Every run is an `r3 train` of its own, with the same held-out sets and the same number of steps and rollouts. A cell is
the mean over the seeds with Student's 95 % interval, the seeds one by one below it; below those, what the first recipe
has more than each other one, paired by seed. Greedy figures come first, the same figure of sampled texts follows.
Finished runs are kept.

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

from machine import Report

from r3_rl.observe.evaluation import Evaluation
from r3_rl.observe.measures import GREEDY, in_nats
from r3_rl.observe.statistics import over_seeds

RECIPES = ("shapes_r3", "shapes_draft_only", "shapes_cotrain", "shapes_random_reward")
FIGURES = {
    "draft": ("change", "draft"),
    "final": ("change", "final"),
    "plan right": ("change", "plan_right"),
    "image given plan": ("change", "image_right_given_plan"),
    "ITA": ("change", "ita_fixed"),
    "listing": ("change", "listing"),
    "questions": ("change", "questions"),
    "wrong edited": ("change", "wrong_drafts_edited"),
    "wrong repaired": ("change", "wrong_drafts_repaired"),
    "right kept": ("after", "right_drafts_kept"),
    "swap own - base": ("swap", ""),
    "harder: final - draft": ("loop", "harder_"),
}
"""What a column shows: after - before, the share after, edits of own critic - of base critic, what the loop adds."""
ONCE = {
    "true plan drawn": ("change", "true_plan_drawn"),
    "true edit drawn": ("change", "true_edit_drawn"),
    "pass@8": ("change", "draft_pass_8"),
    "best of 3, own critic": ("after", "best_of_3_own_critic"),
    "entropy of plans": ("after", "entropy_plan"),
    "entropy of critiques": ("after", "entropy_critique"),
}
"""Figures of one decoding or none. Entropies in nats, all others in points."""
DECODINGS = {"greedy": GREEDY, "sampled": ""}
COLUMNS = {
    **{f"{name}, {words}": (*what, suffix) for name, what in FIGURES.items() for words, suffix in DECODINGS.items()},
    **{name: (*what, "") for name, what in ONCE.items()},
}
BASE = (
    "draft",
    "final",
    "plan_right",
    "image_right_given_plan",
    "ita_fixed",
    "listing",
    "questions",
    "wrong_drafts_edited",
    "wrong_drafts_repaired",
    "right_drafts_kept",
    "harder_draft",
    "harder_final",
)


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


def run(args: argparse.Namespace, recipe: str, seed: int) -> Evaluation:
    """What one run measured; it is trained unless it is there."""
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
    return Evaluation.from_document(json.loads(found[-1].read_text(encoding="utf-8")))


def value(evaluation: Evaluation, kind: str, name: str, suffix: str) -> float | None:
    """One number of a run in percentage points (entropies in nats); None if the run has not measured it."""
    after, scale = evaluation.after, 1 if in_nats(name) else 100
    if kind == "change":
        found = [evaluation.differences.get(name + suffix)]
    elif kind == "after":
        found = [after.get(name + suffix)]
    elif kind == "swap":
        found = [after.get(f"swap_{whose}_critic_edits{suffix}") for whose in ("own", "base")]
    else:
        found = [after.get(f"{name}{part}{suffix}") for part in ("final", "draft")]
    means = [scale * this.mean for this in found if this is not None]
    return means[0] - sum(means[1:]) if len(means) == len(found) else None


def cell(values: list[float | None], digits: int) -> str:
    """The mean over the seeds with its interval."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    if len(known) == 1:
        return f"{known[0]:+.{digits}f}"
    interval = over_seeds(known)
    return f"{interval.mean:+.{digits}f} [{interval.low:+.{digits}f}, {interval.high:+.{digits}f}]"


def minus(first: list[float | None], other: list[float | None]) -> list[float | None]:
    """Differences seed by seed."""
    return [None if a is None or b is None else a - b for a, b in zip(first, other, strict=True)]


def main() -> None:
    args = arguments()
    jobs = [(recipe, seed) for seed in args.seeds for recipe in args.recipes]
    with ThreadPoolExecutor(args.jobs) as pool:
        done = dict(zip(jobs, pool.map(lambda job: run(args, *job), jobs), strict=True))
    recipes = [Path(recipe).stem for recipe in args.recipes]
    rows, numbers = [], {}
    for column, (kind, name, suffix) in COLUMNS.items():
        digits = 2 if in_nats(name) else 1
        cells, singles = [], []
        for recipe, stem in zip(args.recipes, recipes, strict=True):
            values = [value(done[recipe, seed], kind, name, suffix) for seed in args.seeds]
            numbers[f"{stem}/{column}"] = values
            cells.append(cell(values, digits))
            singles.append(" ".join("-" if v is None else f"{v:+.{digits}f}" for v in values))
        rows += [[column, *cells], *([["  seeds", *singles]] if len(args.seeds) > 1 else [])]
        first = numbers[f"{recipes[0]}/{column}"]
        over = [cell(minus(first, numbers[f"{stem}/{column}"]), digits) for stem in recipes[1:]]
        rows += [[f"  {recipes[0]} has more", "", *over]] if over else []
    before = done[jobs[0]].before
    base = {
        words: ", ".join(f"{n} {100 * before[n + suffix].mean:.1f}" for n in BASE if n + suffix in before)
        for words, suffix in DECODINGS.items()
    }
    Report(
        title=f"{args.steps} steps, {len(args.seeds)} seeds, {args.prompts} held-out prompts; points",
        columns=["", *recipes],
        rows=rows,
        notes=[
            *(f"Base, {words}, per cent: {text or 'not measured'}." for words, text in base.items()),
            *([f"With {' '.join(args.set)}."] if args.set else []),
        ],
        numbers=numbers,
    ).show(args.out)


if __name__ == "__main__":
    main()
