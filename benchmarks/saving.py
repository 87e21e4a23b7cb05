"""How long a run of full weights stands still for a checkpoint: written while it goes on, against waiting for it.

The embedded model in one process after a step, so that moments are there; in turns within one process. A checkpoint is
whole when it is flushed, hashed and renamed.

    python benchmarks/saving.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

from machine import Report, middle, spread

from r3_rl.assemble import load_policy
from r3_rl.evaluate.build import build_trainer
from r3_rl.recipe_io import load_recipe
from r3_rl.training.checkpoint import save_checkpoint
from r3_rl.training.trainer import R3Trainer

SETTINGS = ("lora.enabled=false", "balance.probe_every=0", "observe.gallery=0", "algorithm.schedule=draft_only")


def saved(trainer: R3Trainer, folder: Path, *, background: bool) -> tuple[float, float]:
    """Seconds until the run could go on, and until the checkpoint had its name."""
    trainer.args.async_save = background
    begin = time.perf_counter()
    trainer.savings.begin(partial(save_checkpoint, folder, **trainer._saved(), state=trainer.state))
    stood = time.perf_counter() - begin
    trainer.savings.settle(wait=True)
    return stood, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", help="also write the numbers to this JSON file")
    parser.add_argument("overrides", nargs="*", help="settings to change")
    given = parser.parse_args()
    recipe = load_recipe("shapes_r3", [*SETTINGS, *given.overrides])
    with tempfile.TemporaryDirectory() as place:
        trainer = build_trainer(recipe, load_policy(recipe.model, world=recipe.data.world), Path(place) / "run")
        trainer.prepare()
        trainer.step(0)
        found: dict[str, list[tuple[float, float]]] = {"meanwhile": [], "waiting": []}
        for number in range(given.repeats + 1):
            for name, seconds in found.items():
                folder = Path(place) / f"checkpoint-{len(seconds) + 1}"
                seconds.append(saved(trainer, folder, background=name == "meanwhile"))
                size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            if number == 0:
                for seconds in found.values():
                    seconds.clear()
        trainer.close()
    rows = [
        (name, *(f"{1000 * middle(one):.0f} ms ({spread([1000 * v for v in one])})" for one in zip(*each, strict=True)))
        for name, each in found.items()
    ]
    Report(
        title=f"a checkpoint of full weights, {size / 2**20:.0f} MiB",
        columns=("written", "the run stands still", "until it is whole"),
        rows=rows,
        numbers={"bytes": size, "seconds": found},
    ).show(given.out)


if __name__ == "__main__":
    main()
