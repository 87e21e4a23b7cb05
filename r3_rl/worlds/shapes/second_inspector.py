"""A second inspector that learned to read: a small convolutional network over the pixels of a cell.

A held-out judge. It shares nothing with `inspector.py` but the cells: no templates, no palette, no limits, and what it
finds is not what a policy was rewarded for. `second_training.py` makes its weights. Shape legend: B images; N cells of
them, in reading order; P = 12 pixels of a cell's side.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from r3_rl.errors import CheckpointError
from r3_rl.worlds.shapes.board import CELL_SIZE, NINE, Board
from r3_rl.worlds.shapes.drawing import BACKGROUND
from r3_rl.worlds.shapes.scene import UNCLEAR, Obj, Scene
from r3_rl.worlds.shapes.terms import COLORS, SHAPES

FILE = "second_inspector.safetensors"
STATES = ("empty", "clean", "malformed")


class CellReader(nn.Module):
    """float32 [N, 3, P, P], the ground at 0 -> logits of state, colour, shape and size, each [N, its kinds]."""

    def __init__(self, num_sizes: int) -> None:
        super().__init__()
        self.widths = (len(STATES), len(COLORS), len(SHAPES), num_sizes)
        self.seen = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(),
            nn.Conv2d(24, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * (CELL_SIZE // 2) ** 2, 96), nn.ReLU(),
        )  # fmt: skip
        self.named = nn.Linear(96, sum(self.widths))

    def forward(self, cells: Tensor) -> tuple[Tensor, ...]:
        return self.named(self.seen(cells)).split(self.widths, dim=1)


def cells_of(images: np.ndarray, board: Board) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] -> cells [B * cells, 3, P, P], ground at 0 and about one in size."""
    side = board.side
    cells = np.asarray(images, np.float32).reshape(-1, 3, side, CELL_SIZE, side, CELL_SIZE).transpose(0, 2, 4, 1, 3, 5)
    return (
        torch.from_numpy(np.ascontiguousarray(cells).reshape(-1, 3, CELL_SIZE, CELL_SIZE) - np.float32(BACKGROUND)) * 2
    )


@torch.no_grad()
def inspect(images: np.ndarray, board: Board) -> list[Scene]:
    """Read a batch of images with the network that ships with the board's world: as `inspector.inspect`, without
    places inside a cell.

    Raises CheckpointError for a board without a network.
    """
    net = _shipped(board)
    scenes: list[Scene] = []
    for image in np.asarray(images, np.float32):
        state, color, shape, size = (logits.argmax(1).tolist() for logits in net(cells_of(image[None], board)))
        scenes.append(
            tuple(
                Obj(COLORS[color[i]], SHAPES[shape[i]], *cell, rough=rough, size=board.sizes[size[i]].word)
                for i, cell in enumerate(board.cells)
                if state[i]
                for rough in [UNCLEAR if STATES[state[i]] == "malformed" else ""]
            )
        )
    return scenes


@cache
def _shipped(board: Board) -> CellReader:
    path = place_of(board) / FILE
    if not path.is_file():
        command = f"python -m r3_rl.worlds.shapes.second_training {board.name}"
        raise CheckpointError(f"{path} is missing", hint=f"make it with `{command}`, or reinstall r3-rl")
    net = CellReader(len(board.sizes))
    net.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return net.eval()


def place_of(board: Board) -> Path:
    """The folder where a board's network is."""
    here = Path(__file__).resolve().parent
    return here if board is NINE else here / board.name
