"""One R3 step of the embedded model, stage by stage: seconds, samples/s, share of this machine's matrix-product peak.

An R3 step is 64 rollouts (8 prompts x 8) of plan, draft, critique, refinement and update; the tree schedule takes it in
two halves, a reason step and a reflect-refine step. With `--work all` every critique asks for an edit and every text
and image earns credit: the most that a step can cost, whatever the weights say. `--work real` lets the weights decide.

    python benchmarks/shapes_step.py --help
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from machine import Peak, Report, measure_peak, middle

GOAL_STEP_S, GOAL_IMAGES_PER_S, GOAL_AT_GFLOPS = 2.0, 250.0, 800.0
STAGES = ("plan", "draft", "critique", "refinement", "scoring", "update")


@dataclass(kw_only=True)
class Half:
    """One of the two steps, over the repetitions."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in (*STAGES, "total")})
    flops: float = 0.0
    credits: int = 0

    def median(self, stage: str) -> float:
        """Of the repetitions."""
        return middle(self.seconds[stage])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="folder of weights (default: the shipped ones, else random weights)")
    parser.add_argument("--recipe", default="shapes_r3")
    parser.add_argument("--work", choices=("all", "real"), default="all")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "auto"), default="float32")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--images", type=int, default=64, help="images of the drawing measurement")
    parser.add_argument("--repeat", type=int, default=5, help="counted repetitions; medians are shown")
    parser.add_argument("--threads", type=int, default=None, help="default: the physical cores")
    parser.add_argument("--profile", action="store_true", help="also print torch's profile of one step")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the recipe")
    parser.add_argument("--out", help="also write the numbers to this JSON file")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    from r3_rl.process import prepare_process

    prepare_process(args.threads)
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    from embedded import find_weights

    peak = measure_peak()
    with tempfile.TemporaryDirectory() as folder:
        weights, origin = find_weights(args.model, Path(folder))
        trainer, policy = build(args, weights, Path(folder))
        halves = {"reason": Half(), "refine": Half()}
        for repetition in range(args.repeat + 1):
            for number, half in enumerate(halves.values()):
                run_half(trainer, policy, 2 * repetition + number, half, counts=repetition > 0)
        images_per_s, drawing_flops = drawing(trainer, policy, args)
        if args.profile:
            profile(lambda: [run_half(trainer, policy, number, Half(), counts=False) for number in (0, 1)])
    report(args, origin, halves, images_per_s, drawing_flops, peak, trainer).show(args.out)


def build(args: argparse.Namespace, weights: Path, scratch: Path) -> tuple[Any, Any]:
    """The trainer of the recipe, around a policy that takes its own time."""
    from timed_policy import EveryoneEdits, TimedPolicy

    from r3_rl.assemble import load_policy
    from r3_rl.evaluate.build import build_trainer
    from r3_rl.recipe_io import load_recipe

    overrides = [
        f"model.path={weights}",
        f"model.dtype={args.dtype}",
        f"rollout.num_prompts={args.prompts}",
        f"rollout.branch={{plan: {args.group // 2}, draft: 2, critique: {args.group}}}",
        "balance.probe_every=0",
        "algorithm.tree.reason_steps=1",
        "eval_rewards=[]",
        f"training.max_steps={2 * args.repeat + 4}",
    ]
    if args.work == "all":
        # a pinch of sharpness, so that no two images score alike and nobody's advantage is zero
        overrides += [
            "rewards=[{scorer: shapes, params: {strict_weight: 0.7}}, {scorer: sharpness, weight: 0.01}]",
            "algorithm.format_mode=add",
            "algorithm.tree.node_choice=uniform",
        ]
    recipe = load_recipe(args.recipe, [*overrides, *args.set])
    loaded = load_policy(recipe.model)
    policy = TimedPolicy(loaded.policy.model, loaded.policy.reader)
    trainer = build_trainer(recipe, replace(loaded, policy=policy), scratch)
    if args.work == "all":
        engine = trainer.schedule.engine
        protocol = EveryoneEdits(**vars(engine.settings.protocol))
        engine.settings = replace(engine.settings, protocol=protocol)
    trainer.prepare()
    return trainer, policy


def run_half(trainer: Any, policy: Any, step: int, half: Half, *, counts: bool) -> None:
    """One optimiser step; its seconds are kept when it counts, its operations when it does not."""
    from flops import counted

    policy.seconds.clear()
    seen: list[Any] = []
    trainer.on_collected = lambda _, collected: seen.append(collected)
    begin = time.perf_counter()
    if counts:
        measured = trainer.step(step)
    else:
        with counted(policy.model) as count:
            measured = trainer.step(step)
        half.flops = count.flops
    end = time.perf_counter()
    collected = seen[-1]
    expected = ("reason", "refine")[step % 2]
    if collected.phase != expected:
        raise SystemExit(f"no group of drafts was mixed, so there was no {expected} step: use --work all")
    half.credits = len(collected.credits)
    if counts:
        written = policy.seconds.get("write", 0.0)
        first = {"plan": written, "draft": measured.get("time/draft_s", 0.0) - written}
        second = {"critique": measured.get("time/critique_s", 0.0), "refinement": measured.get("time/refine_s", 0.0)}
        stages = first if expected == "reason" else second
        stages |= {"scoring": measured["time/score_s"], "update": measured["time/update_s"]}
        for name in STAGES:
            half.seconds[name].append(stages.get(name, 0.0))
        half.seconds["total"].append(end - begin)


def drawing(trainer: Any, policy: Any, args: argparse.Namespace) -> tuple[float, float]:
    """Images a second at the recipe's steps, and the operations of one call."""
    import torch
    from flops import counted

    from r3_rl.policy.adapters import adapter_merged
    from r3_rl.rollout.engine import Engine

    settings = replace(trainer.loop, plan=None)
    engine = Engine(policy=policy, settings=settings)
    few = trainer.prompts.batch(0)
    prompts = [few[i % len(few)] for i in range(args.images)]

    def run() -> float:
        begin = time.perf_counter()
        engine.drafts(prompts, seed=0)
        return time.perf_counter() - begin

    with torch.no_grad(), adapter_merged(policy.module):
        with counted(policy.model) as count:
            run()
        seconds = middle([run() for _ in range(args.repeat)])
    return args.images / seconds, count.flops


def profile(run: Callable[[], Any]) -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()
    print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=48))


def report(
    args: argparse.Namespace,
    origin: str,
    halves: dict[str, Half],
    images_per_s: float,
    drawing_flops: float,
    peak: Peak,
    trainer: Any,
) -> Report:
    import torch

    from r3_rl.observe.memory import peak_bytes

    names = list(halves)
    total = {name: halves[name].median("total") for name in names}
    both_s = sum(total.values())
    rollouts = args.prompts * args.group
    speed = getattr(peak, str(next(trainer.policy.module.parameters()).dtype).removeprefix("torch."))

    def shares(flops: float, seconds: float) -> str:
        return f"{flops / seconds / 1e9 / speed:.0%}"

    rows: list[Sequence[str]] = []
    for stage in STAGES:
        cells = [halves[name].median(stage) for name in names]
        rows.append([f"{stage} s", *(f"{c:.3f}" if c else "" for c in cells), f"{sum(cells):.3f}"])
    rows.append(["whole step s", *(f"{total[n]:.3f}" for n in names), f"{both_s:.3f}"])
    rows.append(["samples/s", *(f"{rollouts / total[n]:.1f}" for n in names), f"{rollouts / both_s:.1f}"])
    gflop = [halves[n].flops / 1e9 for n in names]
    rows.append(["GFLOP", *(f"{g:.1f}" for g in gflop), f"{sum(gflop):.1f}"])
    shown = [shares(halves[n].flops, total[n]) for n in names]
    rows.append(["share of peak", *shown, shares(sum(gflop) * 1e9, both_s)])
    rows.append(["credits", *(str(halves[n].credits) for n in names), str(sum(halves[n].credits for n in names))])
    scale = GOAL_AT_GFLOPS / peak.best
    goal_s, goal_images = GOAL_STEP_S * scale, GOAL_IMAGES_PER_S / scale
    drawn_s = args.images / images_per_s
    notes = [
        f"Drawing {args.images} images at {trainer.loop.draft.drawing.num_steps} steps: {images_per_s:.0f} images/s, "
        f"{shares(drawing_flops, drawn_s)} of peak. Peak memory {peak_bytes() / 2**30:.2f} GiB.",
        f"Matrix products with {torch.get_num_threads()} threads: {peak}.",
        f"Goal here ({GOAL_STEP_S:.0f} s and {GOAL_IMAGES_PER_S:.0f} images/s at {GOAL_AT_GFLOPS:.0f} GFLOP/s): "
        f"step under {goal_s:.2f} s: {_met(both_s < goal_s)}; "
        f"above {goal_images:.0f} images/s: {_met(images_per_s > goal_images)}.",
        f"Medians of {args.repeat}; operations counted from token numbers, a backward pass included.",
    ]
    return Report(
        title=f"R3 step of the embedded model: {rollouts} rollouts, {args.dtype}, work '{args.work}', {origin}",
        columns=["", "reason step", "reflect-refine step", "both"],
        rows=rows,
        notes=notes,
        numbers={
            "step_s": both_s, "goal_step_s": goal_s, "images_per_s": images_per_s, "goal_images_per_s": goal_images,
            "seconds": {n: {s: halves[n].median(s) for s in (*STAGES, "total")} for n in names},
            "gflop": dict(zip(names, gflop, strict=True)), "peak_memory_bytes": peak_bytes(),
            "peak_gflops": {"float32": peak.float32, "bfloat16": peak.bfloat16},
        },
    )  # fmt: skip


def _met(reached: bool) -> str:
    return "reached" if reached else "NOT reached"


if __name__ == "__main__":
    main()
