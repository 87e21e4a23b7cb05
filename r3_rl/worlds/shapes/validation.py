"""How often the inspector is right: the figures of the README, and in small the tests'.

Run `python -m r3_rl.worlds.shapes.validation [WORLD]` after any change to drawing or inspecting.
"""

from __future__ import annotations

import sys

import numpy as np

from r3_rl.worlds.base import find_world
from r3_rl.worlds.shapes.board import NINE, Board
from r3_rl.worlds.shapes.drawing import BACKGROUND, blur, render
from r3_rl.worlds.shapes.inspector import inspect, same_objects
from r3_rl.worlds.shapes.scene import ROUGH_KINDS, Scene, random_scene

CONDITIONS = (
    "clean",
    "noise 0.03",
    "noise 0.05",
    "noise 0.08",
    "blur 0.7",
    "blur",
    "blur + noise 0.05",
    "brightness 0.8",
)


def disturb(images: np.ndarray, condition: str, rng: np.random.Generator) -> np.ndarray:
    """Pictures that still have to be read right, except that `brightness` below 0.72 makes them malformed."""
    out = images
    for part in condition.split(" + "):
        name, _, amount = part.partition(" ")
        if name == "noise":
            out = np.clip(out + float(amount) * rng.standard_normal(out.shape, np.float32), 0, 1)
        elif name == "blur":
            out = out + np.float32(amount or 1) * (blur(out) - out)
        elif name == "brightness":
            out = BACKGROUND + np.float32(amount) * (out - BACKGROUND)
    return out


def share_right(num_images: int, condition: str, *, seed: int, board: Board = NINE) -> float:
    """Share of pictures of clean objects that are read right in every object."""
    rng = np.random.default_rng(seed)
    scenes = [random_scene(board.any_number(rng), rng, board) for _ in range(num_images)]
    seen = inspect(disturb(render(scenes, board), condition, rng), board)
    return float(np.mean([same_objects(*pair) for pair in zip(seen, scenes, strict=True)]))


def share_malformed(num_images: int, rough: str, *, seed: int, condition: str = "clean", board: Board = NINE) -> float:
    """Share of malformed objects of one kind, three to a picture, that are reported as malformed."""
    rng = np.random.default_rng(seed)
    scenes: list[Scene] = [
        tuple(o._replace(rough=rough, wear=float(rng.random())) for o in random_scene(3, rng, board))
        for _ in range(num_images)
    ]
    images = disturb(render(scenes, board), condition, rng)
    found = [sum(o.malformed for o in seen) for seen in inspect(images, board)]
    return sum(min(n, 3) for n in found) / (3 * num_images)


def main() -> None:
    """Print the table."""
    board: Board = find_world(*sys.argv[1:]).board  # type: ignore[attr-defined]
    for condition in CONDITIONS:
        print(f"right, {condition:18} {share_right(3000, condition, seed=1, board=board):.4f}")
    for rough in ROUGH_KINDS:
        shares = [share_malformed(1000, rough, seed=2, condition=c, board=board) for c in ("clean", "noise 0.05")]
        print(f"malformed, {rough:14} {shares[0]:.3f}, under noise of 0.05 {shares[1]:.3f}")


if __name__ == "__main__":
    main()
