"""Draw true plans of the mosaic world and judge them by both inspectors and by their distance to clean renderings.

What a policy paints from a plan that is given as text depends on no decoding. The second inspector is never a reward,
and neither of the two looks at how smooth an image is.

    python benchmarks/true_plans.py base RUN/adapter OTHER/adapter --plans 900
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from r3_rl.evaluate.refiner import Refiner
from r3_rl.modalities import TextPiece
from r3_rl.observe.statistics import share
from r3_rl.rollout.rows import row_seeds
from r3_rl.stages import DRAFT
from r3_rl.types import Prompt
from r3_rl.worlds.base import find_world
from r3_rl.worlds.shapes.mosaic.board import MOSAIC
from r3_rl.worlds.shapes.scene import Scene
from r3_rl.worlds.shapes.second_inspector import inspect

WORLD = find_world("mosaic")
PROMPTS, SCENES, NOISE, BATCH = 77, 78, 5, 64


def true_plans(count: int) -> tuple[list[Prompt], list[Scene]]:
    """Held-out prompts and a right scene of each."""
    prompts = WORLD.prompts(count, split="held_out", seed=PROMPTS)
    rng = np.random.default_rng(SCENES)
    return prompts, [WORLD.scene(prompt, rng) for prompt in prompts]


def drawn(pipe: Refiner, prompts: Sequence[Prompt], scenes: Sequence[Scene]) -> Iterator[np.ndarray]:
    """Images float32 [3, 60, 60] in [0, 1], one a plan."""
    contexts = [
        (*pipe.loop.protocol.reason_context(prompt), TextPiece(text=WORLD.plan_text(scene)))
        for prompt, scene in zip(prompts, scenes, strict=True)
    ]
    how = replace(pipe.loop.draft.drawing, task=DRAFT.name)
    for start in range(0, len(contexts), BATCH):
        part = contexts[start : start + BATCH]
        for segment in pipe.policy.draw(part, [how] * len(part), row_seeds(NOISE, start, len(part))):
            yield segment.image.numpy()


def main() -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="`base`, or folders of adapters")
    parser.add_argument("--plans", type=int, default=900)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    prompts, scenes = true_plans(options.plans)
    clean = WORLD.draw(scenes)
    for name in options.models:
        pipe = Refiner.from_pretrained("mosaic", None if name == "base" else name)
        images = np.stack(list(drawn(pipe, prompts, scenes)))
        for reader, seen in (("first", WORLD.inspect(images)), ("second", inspect(images, MOSAIC))):
            right = share([float(WORLD.same(scene, found)) for scene, found in zip(scenes, seen, strict=True)])
            bounds = f"{100 * right.low:.1f} to {100 * right.high:.1f}"
            print(f"{name}: {reader} inspector {100 * right.mean:.1f} % ({bounds})")
        print(f"{name}: mean distance to the clean rendering {1000 * np.abs(images - clean).mean():.1f} thousandths")


if __name__ == "__main__":
    main()
