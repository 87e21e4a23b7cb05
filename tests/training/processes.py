"""What a process of several does in the tests: a run of its share, its findings written to a folder by rank."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from r3_rl import ranks
from tests.training.test_trainer import make, reddish, run, untimed, weights


def run_share(folder: str, options: dict[str, Any], resume: str | None = None) -> None:
    """Trains as one of several processes and leaves rows, weights and what was rolled out in `folder/RANK.*`."""
    torch.set_num_threads(1)
    ranks.join()
    if options.get("scorer") == "reddish":
        options = {**options, "scorer": reddish}
    trainer = make(Path(folder) / "run", **options)
    seen: list[dict[str, Any]] = []

    def keep(step: int, collected: Any) -> None:
        seen.append(
            {
                "phase": collected.phase,
                "prompts": [t.prompt.text for t in collected.trajectories()],
                "credits": len(collected.credits),
                "pixels": [float(t.rounds[-1].image.image.double().sum()) for t in collected.trajectories()],
            }
        )

    trainer.on_collected = keep
    rows = untimed(run(trainer, **({"resume_from_checkpoint": resume} if resume else {})))
    found = {
        "world_size": ranks.count(),
        "wrapped": type(trainer.model_wrapped).__name__,
        "rows": rows,
        "seen": seen,
        "pool": [[n.score for n in g.nodes] for g in trainer.schedule.pool.groups],
    }
    (Path(folder) / f"{ranks.rank()}.json").write_text(json.dumps(found))
    torch.save(weights(trainer), Path(folder) / f"{ranks.rank()}.pt")
    ranks.leave()


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    run_share(sys.argv[1], json.loads(sys.argv[2]))
