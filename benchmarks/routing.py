"""Seconds and memory of a step by `balance.routing`: plain LoRA, a LoRA a task (split), mixed by gates (routed).

All of them train the embedded model by `shapes_r3`, a reason and a refine step in turn, and take turns in one
process, so that a busy machine slows them alike.

    python benchmarks/routing.py --help
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from machine import Report, middle, spread

from r3_rl.assemble import load_policy
from r3_rl.evaluate.build import build_trainer
from r3_rl.policy.adapters import adapted_layers, adapter_merged
from r3_rl.policy.routing import RoutedLinear
from r3_rl.recipe_io import load_recipe
from r3_rl.training.trainer import R3Trainer

KINDS = ("shared", "split", "routed")
RECIPE = ("algorithm.tree.reason_steps=1", "algorithm.tree.node_choice=uniform", "balance.probe_every=0",
          "observe.gallery=0", "training.num_threads=1")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--recipe", default="shapes_r3")
    parser.add_argument("--rounds", type=int, default=3, help="turns of a reason and a refine step each")
    parser.add_argument("--out", help="file for the numbers as JSON")
    parser.add_argument("overrides", nargs="*", help="settings to change")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        trainers = {kind: _trainer(given.recipe, given.overrides, kind, Path(scratch)) for kind in KINDS}
        seconds: dict[str, dict[str, list[float]]] = {kind: {"roll out": [], "update": []} for kind in KINDS}
        for number in range(-2, 2 * given.rounds):  # the first two warm up
            for kind, trainer in trainers.items():
                found = _step(trainer, number + 2)
                for name, value in found.items() if number >= 0 else ():
                    seconds[kind][name].append(value)
        _report(seconds, trainers).show(given.out)
        for trainer in trainers.values():
            trainer.close()


def _trainer(recipe: str, overrides: Sequence[str], kind: str, scratch: Path) -> R3Trainer:
    checked = load_recipe(recipe, [*RECIPE, *overrides, f"balance.routing={kind}"])
    trainer = build_trainer(checked, load_policy(checked.model, world=checked.data.world), scratch / kind)
    trainer.self_check()
    trainer.prepare()
    return trainer


def _step(trainer: R3Trainer, number: int) -> dict[str, float]:
    begin = time.process_time()
    collected = trainer.roll_out(number)
    rolled_out = time.process_time()
    trainer.updater.learn(number, collected.credits)
    return {"roll out": rolled_out - begin, "update": time.process_time() - rolled_out}


def _report(seconds: dict[str, dict[str, list[float]]], trainers: dict[str, R3Trainer]) -> Report:
    rows, numbers = [], dict[str, Any]()
    plain = sum(middle(values) for values in seconds["shared"].values())
    for kind, trainer in trainers.items():
        out, update = (middle(values) for values in seconds[kind].values())
        trained = sum(p.numel() for p in trainer.learner.names)
        sums = _bytes_of_sums(trainer)
        rows.append([
            "plain LoRA (shared)" if kind == "shared" else kind,
            f"{out:.2f}", spread(seconds[kind]["roll out"]), f"{update:.2f}", spread(seconds[kind]["update"]),
            f"{(out + update) / plain:.2f}", f"{trained / 1e6:.2f}", f"{12 * trained / 1e6:.1f}", f"{sums / 1e6:.1f}",
        ])  # fmt: skip
        numbers[kind] = {"seconds": seconds[kind], "trained": trained, "bytes_of_sums": sums}
    columns = ["", "roll out", "", "update", "", "of plain", "10^6 trained", "with moments MB", "sums MB"]
    notes = [
        "Processor seconds of a step, median and smallest .. largest; reason and refine steps alike.",
        "With moments: float32 weights of the adapter and AdamW's two moments. Sums: copies of adapted weights that a",
        "float32 model runs on, one for each task that a step has, in rollouts and updates.",
    ]
    return Report(title="A step by balance.routing", columns=columns, rows=rows, notes=notes, numbers=numbers)


def _bytes_of_sums(trainer: R3Trainer) -> int:
    """Of the cached sums of the last step's tasks, made again."""
    module = trainer.policy.module
    tasks = {credit.stage for credit in (trainer._collected.credits if trainer._collected else ())}
    with adapter_merged(module) if tasks else nullcontext():
        total = 0
        for layer in adapted_layers(module).values():
            for task in tasks if isinstance(layer, RoutedLinear) else [""]:
                weight = layer.plain_weight(task)
                total += 0 if weight is None else weight.numel() * weight.element_size()
        return total


if __name__ == "__main__":
    main()
