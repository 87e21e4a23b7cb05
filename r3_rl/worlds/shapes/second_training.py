"""How the second inspector learned to read, and how often both are right.

`python -m r3_rl.worlds.shapes.second_training WORLD` trains it again from its seed, writes its weights and prints the
table of the README.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from r3_rl.worlds.base import find_world
from r3_rl.worlds.shapes import inspector
from r3_rl.worlds.shapes.board import Board
from r3_rl.worlds.shapes.drawing import BACKGROUND, blur, render
from r3_rl.worlds.shapes.scene import ROUGH_KINDS, Scene, random_scene, roughen
from r3_rl.worlds.shapes.second_inspector import FILE, STATES, CellReader, cells_of, inspect, place_of
from r3_rl.worlds.shapes.terms import COLORS, SHAPES
from r3_rl.worlds.shapes.validation import CONDITIONS, disturb

_STEPS, _IMAGES, _RATE = 1500, 16, 3e-3
"""Of training: updates, images in each, highest learning rate."""


def train(board: Board, *, seed: int = 0, steps: int = _STEPS) -> CellReader:
    """Train a network on renders that are clean, noisy, blurred, dim, and on malformed objects of every kind.

    Args:
        board: whose images it is to read.
        seed: of weights and data; the same seed gives the same network on the same machine.
        steps: updates.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = CellReader(len(board.sizes))
    optim = torch.optim.AdamW(net.parameters(), lr=_RATE, weight_decay=1e-3)
    plan = torch.optim.lr_scheduler.OneCycleLR(optim, _RATE, total_steps=steps)
    for _ in range(steps):
        scenes = [_practice(rng, board) for _ in range(_IMAGES)]
        told = torch.tensor([label for scene in scenes for label in _labels(scene, board)])
        logits = net(cells_of(_worn(render(scenes, board), rng), board))
        loss = F.cross_entropy(logits[0], told[:, 0])
        clean = told[:, 0] == STATES.index("clean")  # what a malformed object is called is a guess
        for named, column in zip(logits[1:], told.T[1:], strict=True):
            loss = loss + F.cross_entropy(named[clean], column[clean])
        optim.zero_grad()
        loss.backward()
        optim.step()
        plan.step()
    return net.eval()


def _practice(rng: np.random.Generator, board: Board) -> Scene:
    """A crowded scene: a third of the objects malformed, and some neither small nor large where there are sizes."""
    scene = random_scene(1 + int(rng.random() * (len(board.cells) - 2)), rng, board)
    for i, o in enumerate(scene):
        if rng.random() < 0.3:
            scene = roughen(scene, i, rng)
        elif board.is_sized and rng.random() < 0.1:
            between = _between(rng, board)
            scene = (*scene[:i], o._replace(radius=between, rough=""), *scene[i + 1 :])
    return scene


def _between(rng: np.random.Generator, board: Board) -> float:
    gap = np.array([[board.sizes[0].radius[1], board.sizes[1].radius[0]]]).ravel()
    middle, half = float(gap.mean()), float(np.diff(gap)[0]) / 2 - inspector.MAX_OFF_SIZE
    return middle + (2 * rng.random() - 1) * max(half, 0.05)


def _labels(scene: Scene, board: Board) -> Iterator[tuple[int, int, int, int]]:
    there = {o.cell: o for o in scene}
    words = [size.word for size in board.sizes]
    for cell in board.cells:
        if (o := there.get(cell)) is None:
            yield (0, 0, 0, 0)
            continue
        low, high = board.radius(o.size)
        fits = low - inspector.MAX_OFF_SIZE <= o.radius <= high + inspector.MAX_OFF_SIZE
        yield (1 if fits and not o.rough else 2, COLORS.index(o.color), SHAPES.index(o.shape), words.index(o.size))


def _worn(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each image with flaws of its own that a verdict overlooks: blur, brightness, noise."""
    size = (len(images), 1, 1, 1)
    out = images + (rng.random(size, np.float32) * 0.9) * (rng.random(size) < 0.5) * (blur(images) - images)
    out = BACKGROUND + (0.78 + 0.27 * rng.random(size, np.float32)) * (out - BACKGROUND)
    noise = (rng.random(size, np.float32) * 0.08) * (rng.random(size) < 0.7)
    return np.clip(out + noise * rng.standard_normal(out.shape, np.float32), 0, 1).astype(np.float32)


def agreement(scenes: Sequence[Scene], images: np.ndarray, board: Board) -> tuple[float, float, float]:
    """Shares of images that the first and the second inspector read right in every object, and that they read alike.
    Of malformed objects only the cell counts, since what they are called is a guess."""
    first, second = inspector.inspect(images, board), inspect(images, board)
    seen = [[_told(scene) for scene in these] for these in (first, second, scenes)]
    return tuple(  # type: ignore[return-value]
        float(np.mean([a == b for a, b in zip(one, other, strict=True)]))
        for one, other in ((seen[0], seen[2]), (seen[1], seen[2]), (seen[0], seen[1]))
    )


def _told(scene: Scene) -> frozenset[tuple[object, ...]]:
    return frozenset((o.row, o.col) if o.rough else (*o[:4], o.size) for o in scene)


def main() -> None:
    """Train, write the weights and print the table."""
    board: Board = find_world(*sys.argv[1:]).board  # type: ignore[attr-defined]
    net = train(board)
    path = place_of(board) / FILE
    save_file({name: tensor.half() for name, tensor in net.state_dict().items()}, path)
    print(f"{path}: {sum(p.numel() for p in net.parameters()):,} parameters, {path.stat().st_size:,} bytes")
    rng = np.random.default_rng(1)
    for condition in (*CONDITIONS, *ROUGH_KINDS):
        rough = condition in ROUGH_KINDS  # one object, so that shares are of objects
        scenes: list[Scene] = [random_scene(1 if rough else board.any_number(rng), rng, board) for _ in range(500)]
        if rough:
            scenes = [tuple(o._replace(rough=condition, wear=float(rng.random())) for o in scene) for scene in scenes]
        images = render(scenes, board)
        shown = images if rough else disturb(images, condition, rng)
        first, second, alike = agreement(scenes, shown, board)
        print(f"{condition:18} first {first:.3f}, second {second:.3f}, alike {alike:.3f}")


if __name__ == "__main__":
    main()
