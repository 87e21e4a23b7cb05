"""A ladder of rewards that a working trainer must learn: which rung rises, how far, and in how many steps and seconds.

The lower rungs need no skill (name three objects, draw brighter images, always stop); the upper ones are the real task,
with the text loss only, the image loss only, both, and the whole loop. All figures are greedy: texts by the likeliest
words, images by the ODE. `--settings first` trains with the settings of the first house (two random stochastic steps
of eight, AdamW's epsilon of 1e-8), `now` with those of the shapes recipes. Finished runs are kept.

    python benchmarks/learns.py --seeds 0 1 2 --settings first now --jobs 2
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import Report

from r3_rl.observe.statistics import over_seeds

HARD = ("count_color", "multi_count", "multi_color_count", "multi_object")
SETTINGS = {
    "first": (
        "rollout.branch={plan: 8, draft: 1, critique: 8}", "training.adam_epsilon=1e-8",
        "training.learning_rate=2e-3", "training.image_learning_rate=5e-4",
        *(f"rollout.{stage}.{key}" for stage in ("draft", "refine")
          for key in ("sde=r3_monotonic", "eta=0.7", "window=random", "num_sde_steps=2")),
    ),
    "now": (),
}  # fmt: skip
IN_TURN = "algorithm.tree.reason_steps=1"
"""Critiques are what is learned: every second step has them."""
ONLY_TEXT = ("algorithm.image_loss_weight=0", "lora.branches=understanding", "training.image_learning_rate=null")
ONLY_IMAGE = (
    "algorithm.text_loss_weight=0", "lora.branches=generation", "training.image_learning_rate=null",
    "rollout.branch={plan: 1, draft: ${drafts}}", "training.learning_rate=${image_learning_rate}",
)  # fmt: skip
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One reward and what is trained on it."""

    reward: str
    recipe: str
    overrides: tuple[str, ...]
    figure: str
    """What is measured: `reward` for the rung's own scorer, `stops`, or a measure of the world's bench."""
    goal: float
    """The greedy figure that counts as learned; for brightness and colour a rise by so much of where it began."""
    relative: bool = False


RUNGS = {
    "plan: three objects": Rung(
        reward="three_objects", recipe="shapes_draft_only", overrides=ONLY_TEXT, figure="reward", goal=0.95
    ),
    "plan: all red": Rung(
        reward="all_red", recipe="shapes_draft_only", overrides=ONLY_TEXT, figure="reward", goal=0.95
    ),
    "plan: starts top left": Rung(
        reward="starts_top_left", recipe="shapes_draft_only", overrides=ONLY_TEXT, figure="reward", goal=0.95
    ),
    "image: bright": Rung(
        reward="bright", recipe="shapes_draft_only", overrides=ONLY_IMAGE, figure="reward", goal=0.2, relative=True
    ),
    "image: blue": Rung(
        reward="blue", recipe="shapes_draft_only", overrides=ONLY_IMAGE, figure="reward", goal=0.2, relative=True
    ),
    "image: left half dark": Rung(
        reward="left_half_dark",
        recipe="shapes_draft_only",
        overrides=ONLY_IMAGE,
        figure="reward",
        goal=0.2,
        relative=True,
    ),
    "critique: always stop": Rung(
        reward="content", recipe="shapes_r3", overrides=(*ONLY_TEXT, IN_TURN), figure="stops", goal=0.95
    ),
    "critique: always edit": Rung(
        reward="restless", recipe="shapes_r3", overrides=(*ONLY_TEXT, IN_TURN), figure="edits", goal=0.95
    ),
    "critique: red first": Rung(
        reward="names_red_first", recipe="shapes_r3", overrides=(*ONLY_TEXT, IN_TURN), figure="red_first", goal=0.95
    ),
    "shapes, text loss only": Rung(
        reward="shapes", recipe="shapes_draft_only", overrides=ONLY_TEXT, figure="plan_right", goal=0.9
    ),
    "shapes, image loss only": Rung(
        reward="shapes", recipe="shapes_draft_only", overrides=ONLY_IMAGE, figure="true_plan_drawn", goal=0.6
    ),
    "shapes, both losses": Rung(
        reward="shapes", recipe="shapes_draft_only", overrides=(), figure="draft", goal=0.5
    ),
    "shapes, R3": Rung(reward="shapes", recipe="shapes_r3", overrides=(), figure="final", goal=0.7),
}  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rungs", nargs="+", default=list(RUNGS), help="names, or parts of names")
    parser.add_argument("--settings", nargs="+", default=["now"], choices=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=10, help="steps between two measurements")
    parser.add_argument("--prompts", type=int, default=100, help="held-out prompts of a measurement")
    parser.add_argument("--set", nargs="*", default=[], help="further overrides, key=value")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one thread each")
    parser.add_argument("--runs", default="runs/ladder", help="folder for what each run measured")
    parser.add_argument("--out", help="also write the numbers to this JSON file")
    parser.add_argument("--one", nargs=3, metavar=("RUNG", "SETTINGS", "SEED"), help=argparse.SUPPRESS)
    return parser.parse_args()


def recipe_of(rung: Rung, settings: str, seed: int, steps: int, extra: Sequence[str]) -> Any:
    """The recipe of one run. `${key}` in an override is the value that the recipe has for it otherwise."""
    from r3_rl.recipe_io import load_recipe

    plain = load_recipe(rung.recipe, [*SETTINGS[settings], *extra])
    known = {
        "${drafts}": plain.rollout.branch.rollouts("reason"),
        "${image_learning_rate}": plain.training.image_learning_rate or plain.training.learning_rate,
    }
    overrides = [*SETTINGS[settings], *extra, *rung.overrides]
    for name, found in known.items():
        overrides = [text.replace(name, str(found)) for text in overrides]
    if rung.reward != "shapes":
        overrides.append(f"rewards=[{{scorer: '{HERE / 'ladder_rewards.py'}:{rung.reward}'}}]")
        overrides += ["algorithm.tree.node_choice=uniform"]
    return load_recipe(rung.recipe, [
        *overrides, f"training.seed={seed}", f"training.max_steps={steps}", f"training.save_steps={steps + 1}",
        "algorithm.max_zero_variance_steps=1000", "training.num_threads=1", "eval_rewards=[]",
    ])  # fmt: skip


def measurer(rung: Rung, policy: Any, settings: Any, prompts: Sequence[Any]) -> Callable[[], float]:
    """What gives the rung's greedy figure for the policy as it is."""
    import ladder_rewards

    from r3_rl.evaluate.measured import chunks, right
    from r3_rl.evaluate.painting import measure_true_plans, plan_and_painter
    from r3_rl.evaluate.reflection import FixedDrafts, judged, read
    from r3_rl.rollout.engine import run_loop
    from r3_rl.scoring.batch import to_uint8
    from r3_rl.worlds.base import find_world
    from r3_rl.worlds.sets import verdicts

    greedy, world = settings.for_evaluation(0.0), find_world("shapes")

    def measure() -> float:
        if rung.figure == "true_plan_drawn":
            return float(np.mean(measure_true_plans(world, policy, prompts, greedy, seed=11)[rung.figure]))
        rounds = 2 if rung.figure == "final" else 0
        walked = [
            t for part in chunks(len(prompts)) for t in run_loop(policy, prompts[part], greedy, rounds=rounds, seed=7)
        ]
        if rung.figure == "reward":
            scorer = getattr(ladder_rewards, rung.reward)
            images = [to_uint8(t.rounds[0].image.image) for t in walked]
            return float(np.mean(scorer(images=images, completions=[t.rounds[0].plan.text for t in walked])))
        if rung.figure == "plan_right":
            return float(np.mean(plan_and_painter(world, walked)["plan_right"]))
        if rung.figure in ("draft", "final"):
            return float(np.mean([right(t.rounds[-1].verdict) for t in judged(walked, partial(verdicts, world))]))
        critiques = read(policy, FixedDrafts.of(walked), greedy, 13)
        if rung.figure == "stops":
            return float(np.mean([c.stop for c in critiques]))
        if rung.figure == "edits":
            return float(np.mean([bool(c.instruction) for c in critiques]))
        texts = [c.segment.text for c in critiques]
        return float(np.mean(ladder_rewards.names_red_first(images=texts, critiques=texts)))

    return measure


def run_one(args: argparse.Namespace) -> dict[str, Any]:
    """One run, in this process: the greedy figure every so many steps, and the seconds that training took by then."""
    from transformers import TrainerCallback

    from r3_rl.assemble import load_policy, loop_settings
    from r3_rl.evaluate.build import build_trainer
    from r3_rl.policy.adapters import adapter_merged
    from r3_rl.worlds.shapes.prompts import sample_prompts

    name, settings, seed = args.one
    rung = RUNGS[name]
    recipe = recipe_of(rung, settings, int(seed), args.steps, args.set)
    loaded = load_policy(recipe.model)
    prompts = sample_prompts(args.prompts, split="held_out", tags=recipe.data.tags or HARD, seed=77_001)
    measure = measurer(rung, loaded.policy, loop_settings(recipe.rollout), prompts)
    curve: list[tuple[int, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(recipe, loaded, Path(folder))
        curve.append((0, measure(), 0.0))
        spent, begin = 0.0, time.perf_counter()

        class Watch(TrainerCallback):
            def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
                nonlocal spent, begin
                if state.global_step % args.every == 0:
                    spent += time.perf_counter() - begin
                    with adapter_merged(loaded.policy.module):
                        curve.append((state.global_step, measure(), spent))
                    begin = time.perf_counter()

        trainer.add_callback(Watch())
        trainer.train()
        trainer.close()
    return {"curve": curve, "goal": curve[0][1] * (1 + rung.goal) if rung.relative else rung.goal}


def row_of(name: str, settings: str, runs: Sequence[dict[str, Any]]) -> list[str]:
    """A line of the table: mean over the seeds, and each seed."""
    first, last = ([run["curve"][place][1] for run in runs] for place in (0, -1))
    change = [b - a for a, b in zip(first, last, strict=True)]
    steps, seconds = [], []
    for run in runs:
        hit = next(((s, t) for s, figure, t in run["curve"] if figure >= run["goal"]), None)
        steps.append("-" if hit is None else str(hit[0]))
        seconds.append("-" if hit is None else f"{hit[1]:.0f}")
    interval = over_seeds(change) if len(change) > 1 else None
    return [
        name, settings, f"{np.mean(first):.3f}", f"{np.mean(last):.3f}",
        f"{np.mean(change):+.3f}" + (f" [{interval.low:+.3f}, {interval.high:+.3f}]" if interval else ""),
        " ".join(f"{c:+.3f}" for c in change), f"{runs[0]['goal']:.2f}", " ".join(steps), " ".join(seconds),
    ]  # fmt: skip


def main() -> None:
    args = arguments()
    if args.one:
        print(json.dumps(run_one(args)))
        return
    names = [name for name in RUNGS if any(part in name for part in args.rungs)]
    jobs = [(name, settings, seed) for name in names for settings in args.settings for seed in args.seeds]

    def start(job: tuple[str, str, int]) -> dict[str, Any]:
        slug = "-".join(
            [re.sub(r"\W+", "_", job[0]), *map(str, job[1:]), str(args.steps), str(args.prompts), *args.set]
        )
        kept = Path(args.runs) / f"{slug}.json"
        if kept.is_file():
            return dict(json.loads(kept.read_text(encoding="utf-8")))
        command = [
            sys.executable, str(HERE / "learns.py"), "--one", job[0], job[1], str(job[2]), "--steps", str(args.steps),
            "--every", str(args.every), "--prompts", str(args.prompts), "--set", *args.set,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(f"{job}: {done.stderr[-2000:]}")
        measured = done.stdout.splitlines()[-1]
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(measured + "\n", encoding="utf-8")
        return dict(json.loads(measured))

    with ThreadPoolExecutor(args.jobs) as pool:
        found = dict(zip(jobs, pool.map(start, jobs), strict=True))
    rows = [
        row_of(name, settings, [found[name, settings, seed] for seed in args.seeds])
        for name in names
        for settings in args.settings
    ]
    Report(
        title=f"{args.steps} steps, seeds {' '.join(map(str, args.seeds))}, {args.prompts} held-out prompts, greedy",
        columns=["rung", "settings", "before", "after", "change", "by seed", "goal", "steps to goal", "seconds"],
        rows=rows,
        notes=["One thread a run. Goals of bright, blue and left half dark: a rise by a fifth of where they began."],
        numbers={f"{name}|{settings}|{seed}": run for (name, settings, seed), run in found.items()},
    ).show(args.out)


if __name__ == "__main__":
    main()
