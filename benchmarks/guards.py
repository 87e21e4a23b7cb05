"""Runs in which exactly one thing goes wrong: what the guards say, and at which step.

Each is a real training of the embedded model (few prompts, four denoising steps) with one fault planted into its
settings, its scorer or its trainer. A run ends when its guard has spoken. The healthy runs go on to their end.

    python benchmarks/guards.py --help
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import Report

from r3_rl import joining
from r3_rl.assemble import load_policy
from r3_rl.errors import RunError
from r3_rl.evaluate.build import build_trainer
from r3_rl.observe.guards import GUARDS
from r3_rl.recipe_io import load_recipe
from r3_rl.training.trainer import R3Trainer
from r3_rl.types import Verdict

HERE = Path(__file__).parent
SMALL = (
    "rollout.num_prompts=4",
    "rollout.branch={plan: 4, draft: 1, critique: 4, refinement: 1}",
    "rollout.draft.num_steps=4",
    "rollout.draft.window_size=2",
    "rollout.refine.num_steps=4",
    "rollout.refine.window_size=2",
    "rollout.rounds=1",
    "algorithm.tree.reason_steps=1",
    "algorithm.tree.node_choice=uniform",
    "training.lr_scheduler=constant",
    "training.warmup_steps=0",
    "observe.gallery=0",
)
LADDER, PLANTED = HERE / "ladder_rewards.py", HERE / "planted_scorers.py"


def _rewards(*names: str) -> str:
    files = {name: LADDER if name in ("bright", "restless", "content") else PLANTED for name in names}
    return f"rewards=[{', '.join(f'{{scorer: {file}:{name}}}' for name, file in files.items())}]"


@dataclass(frozen=True, kw_only=True)
class Plant:
    """A run and its fault."""

    guard: str
    """That is to speak; "" for a healthy run."""
    fault: str
    """What was planted, in words."""
    settings: Sequence[str]
    steps: int
    recipe: str = "shapes_draft_only"
    hand: Callable[[R3Trainer], None] | None = None
    """Plants what no setting does."""
    processes: int = 1


def _minus(trainer: R3Trainer) -> None:
    def negated(verdicts: Sequence[Verdict], groups: Sequence[int]) -> list[float | None]:
        return [None if v.total is None else -v.total for v in verdicts]

    trainer.schedule.rewards = negated


def _moved_weights(trainer: R3Trainer) -> None:
    """Something else writes into the weights between a rollout and its update."""

    def move(step: int, collected: Any) -> None:
        for name, parameter in trainer.policy.module.named_parameters():
            if "lora_B" in name and step == 3:
                parameter.data += 1e-2 * torch.randn_like(parameter)

    trainer.on_collected = move


def _same_rows(trainer: R3Trainer) -> None:
    trainer.schedule.engine.first_group = 0


IMAGES = ("algorithm.text_loss_weight=0", "lora.branches=generation", "training.learning_rate=0.002",
          "training.image_learning_rate=null")  # fmt: skip
PLANTS = (
    Plant(guard="", fault="nothing: drafts", settings=(), steps=60),
    Plant(guard="", fault="nothing: drafts and refinements", settings=(), steps=60, recipe="shapes_r3"),
    Plant(
        guard="",
        fault="nothing: two updates on the same rollouts, a KL term",
        settings=("algorithm.num_iterations=2", "algorithm.beta=0.01", "algorithm.image_beta=0.01",
                  "rollout.branch={plan: 8, draft: 1, critique: 8, refinement: 1}"),
        steps=40,
        recipe="shapes_r3",
    ),
    Plant(guard="not_finite", fault="a scorer that logs the logarithm of 0", settings=[_rewards("logs_nan")], steps=3),
    Plant(
        guard="equal_noise",
        fault="both of two processes count their rows from 0",
        settings=(),
        steps=3,
        hand=_same_rows,
        processes=2,
    ),
    Plant(
        guard="dead_policy",
        fault="a learning rate of 1, KL 0.01",
        settings=("training.learning_rate=1.0", "training.image_learning_rate=1.0", "algorithm.beta=0.01"),
        steps=20,
    ),
    Plant(
        guard="no_change",
        fault="a learning rate of 1e-30",
        settings=("training.learning_rate=1.0e-30", "training.image_learning_rate=1.0e-30"),
        steps=20,
    ),
    Plant(
        guard="drafts_get_worse",
        fault="a scorer that gives any refinement full marks, while drafts earn minus their score",
        settings=[_rewards("full_marks"), "eval_rewards=[]", *IMAGES],
        steps=160,
        recipe="shapes_r3",
        hand=_minus,
    ),
    Plant(
        guard="draft_collapse",
        fault="drafts earn minus their score",
        settings=[_rewards("dark"), "eval_rewards=[]", *IMAGES],
        steps=120,
        hand=_minus,
    ),
    Plant(
        guard="held_out_falls",
        fault="brightness as the reward, right images held out",
        settings=[_rewards("bright"), *IMAGES],
        steps=120,
    ),
    Plant(
        guard="off_policy_ratio",
        fault="the weights move between a rollout and its update",
        settings=(),
        steps=6,
        hand=_moved_weights,
    ),
    Plant(
        guard="clip_pinned",
        fault="six updates on the same rollouts at a rate of 0.02, a clip range of 0.001",
        settings=("algorithm.num_iterations=6", "training.save_steps=6", "training.learning_rate=0.02",
                  "algorithm.epsilon=0.001"),
        steps=40,
    ),
    Plant(
        guard="entropy_collapse",
        fault="a reward for one text, the same for every prompt",
        settings=[_rewards("one_plan"), "eval_rewards=[]", "algorithm.image_loss_weight=0",
                  "training.learning_rate=0.01"],
        steps=150,
    ),
    Plant(
        guard="kl_runaway",
        fault="a reward for one text, a KL coefficient of 1e-6 that holds nothing",
        settings=[_rewards("one_plan"), "eval_rewards=[]", "algorithm.image_loss_weight=0",
                  "training.learning_rate=0.01", "algorithm.beta=1.0e-6"],
        steps=80,
    ),
    Plant(
        guard="malformed",
        fault="a reward for the word red, form not paid for",
        settings=[_rewards("many_reds"), "eval_rewards=[]", "algorithm.image_loss_weight=0",
                  "algorithm.format_mode=add", "algorithm.format_weight=0", "training.learning_rate=0.01"],
        steps=100,
    ),
    Plant(
        guard="stop_rate",
        fault="a scorer that pays for any refinement",
        settings=[_rewards("restless"), "eval_rewards=[]", "training.learning_rate=0.01"],
        steps=100,
        recipe="shapes_r3",
    ),
    Plant(
        guard="missing_scores",
        fault="a scorer that gives nothing for one image of a batch",
        settings=[_rewards("drops_some")],
        steps=3,
    ),
    Plant(
        guard="equal_groups",
        fault="a scorer that gives everything a half",
        settings=[_rewards("constant")],
        steps=8,
    ),
    Plant(
        guard="near_epsilon",
        fault="AdamW's epsilon at 1e-3",
        settings=("training.adam_epsilon=1.0e-3",),
        steps=10,
    ),
    Plant(
        guard="memory_growth",
        fault="a scorer that keeps 8 MB of every batch",
        settings=[_rewards("leaks"), "eval_rewards=[]"],
        steps=80,
    ),
)  # fmt: skip


def train(plant: Plant, folder: Path) -> dict[str, Any]:
    """The run in this process: what was said, the steps and how it ended."""
    recipe = load_recipe(plant.recipe, [*SMALL, f"training.max_steps={plant.steps}", *plant.settings])
    loaded = load_policy(recipe.model, world=recipe.data.world)
    trainer = build_trainer(recipe, loaded, folder)
    said: list[str] = []

    def say(sentence: str) -> None:
        said.append(sentence)
        if sentence.startswith(f"guard {plant.guard} "):
            trainer.args.max_steps = 0  # this was the last step

    trainer.guards.say = say
    trainer.args.save_strategy = "no"
    if plant.hand is not None:
        plant.hand(trainer)
    error, begin = "", time.monotonic()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
    except RunError as raised:
        error = str(raised)
    finally:
        trainer.close()
    stopped = trainer.guards.stopped
    return {
        "said": said,
        "steps": trainer.state.global_step,
        "stopped": stopped.finding.name if stopped else "",
        "error": error,
        "seconds": time.monotonic() - begin,
        "logged": [
            {k: v for k, v in row.items() if not k.startswith("time/")}
            for row in trainer.state.log_history
            if "train_runtime" not in row
        ],
    }


def _child(rank: int, count: int, port: int, folder: str, number: int) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    joining.join()
    found = train(PLANTS[number], Path(folder))
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found))
    joining.leave()


def run(number: int, folder: Path) -> dict[str, Any]:
    """Forked, so that what a run leaves behind (memory, seeds) is no other's."""
    plant = PLANTS[number]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(
        _child, (plant.processes, port, str(folder), number), nprocs=plant.processes, start_method="fork"
    )
    return dict(json.loads((folder / "found.json").read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="guards whose runs are made; `healthy` for those without a fault")
    parser.add_argument("--markdown", help="file for the table of docs/guards.md")
    parser.add_argument("--out", help="file for the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, numbers = [], {}
    for number, plant in enumerate(PLANTS):
        if options.only and (plant.guard or "healthy") not in options.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = run(number, Path(folder))
        numbers[plant.fault] = found
        ours = [s for s in found["said"] if s.startswith(f"guard {plant.guard} ")] if plant.guard else found["said"]
        others = [s.split()[1] for s in found["said"] if s not in ours] if plant.guard else []
        step = ours[0].partition(" at step ")[2].partition(":")[0] if ours else "-"
        sentence = ours[0].partition(": ")[2] if ours else f"nothing in {found['steps']} steps"
        rows.append([plant.guard or "healthy", plant.fault, step, sentence, ", ".join(others) or "-"])
        print(f"{rows[-1]} {found['seconds']:.0f} s {found['error']}", flush=True)
    said = sum(bool(plant.guard) for plant in PLANTS)
    report = Report(
        title=f"planted runs, {len(GUARDS)} guards, {said} of them planted",
        columns=("guard", "planted", "step", "said", "others that spoke"),
        rows=rows,
        numbers={"runs": numbers},
    )
    report.show(options.out)
    if options.markdown:
        lines = ["| guard | planted | step | what it said | others before it |", "|---|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        Path(options.markdown).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
