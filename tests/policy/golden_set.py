"""The recorded numbers of BAGEL's reference code: the folder, its arrays, the model they were made with.

`R3_GOLDENS` names another folder of the same format (other sizes, other seeds, some files absent). Nothing here knows
a size: they come from the JSON files and from the arrays.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from r3_rl.policy.bagel.attention import CachePart
from r3_rl.policy.bagel.autoencoder import Autoencoder
from r3_rl.policy.bagel.checkpoint import load_autoencoder, load_bagel
from r3_rl.policy.bagel.config import BagelConfig, ResizeRule
from r3_rl.policy.bagel.images import patchify, resample, resized_size, to_float
from r3_rl.policy.bagel.model import Bagel, BagelOutput
from r3_rl.policy.bagel.packing import Block, LatentBlock, LookBlock, Packed, TextBlock, pack

OWN_FOLDER = Path(__file__).parents[1] / "golden" / "bagel"


def golden_folder() -> Path:
    """The folder that the golden tests read."""
    return Path(os.environ.get("R3_GOLDENS") or OWN_FOLDER)


class Arrays:
    """One npz file; arrays come as tensors."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self.content = {name: file[name] for name in file.files}
        self.name = path.stem

    def __contains__(self, name: str) -> bool:
        return name in self.content

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.content:
            pytest.skip(f"{self.name}.npz holds no {name}")
        return torch.from_numpy(np.array(self.content[name]))

    def ids(self, name: str) -> list[int]:
        """An integer array as a list."""
        return [int(i) for i in self[name].flatten()]

    def match(self, pattern: str) -> list[re.Match[str]]:
        """The names that match a pattern as a whole, in the file's order."""
        return [m for name in self.content if (m := re.fullmatch(pattern, name))]


@functools.lru_cache(maxsize=32)
def arrays(name: str) -> Arrays:
    """The arrays of NAME.npz; the test is skipped, naming it, when the file is absent."""
    path = golden_folder() / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    return Arrays(path)


def _need(*names: str) -> None:
    for name in names:
        if not (golden_folder() / name).is_file():
            pytest.skip(f"{golden_folder() / name} is absent")


@functools.cache
def model(dtype: torch.dtype = torch.float32) -> Bagel:
    """The recorded weights in our model."""
    _need("llm_config.json", "vit_config.json", "bagel_tiny.safetensors")
    return load_bagel(golden_folder(), dtype=dtype)


@functools.cache
def autoencoder() -> Autoencoder:
    """The recorded autoencoder, in float32 as in the release."""
    _need("llm_config.json", "vit_config.json", "ae_config.json", "ae_tiny.safetensors")
    return load_autoencoder(golden_folder())


@dataclass(frozen=True, kw_only=True, eq=False)
class Past:
    """An encoded context: its cache and the rotary position that follows."""

    parts: tuple[CachePart, ...] = ()
    position: int = 0

    def stacked(self, kind: str) -> Tensor:
        """Keys or values of all parts as recorded, [L, T, kv heads, head_dim]."""
        layers = zip(*(getattr(part, kind) for part in self.parts), strict=True)
        return torch.stack([torch.cat(list(layer), 2)[0].transpose(0, 1) for layer in layers])


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One forward pass over one row, in the order of its tokens."""

    packed: Packed
    output: BagelOutput
    bagel: Bagel
    past: Past
    """The context with this row's blocks appended."""

    @property
    def hidden(self) -> Tensor:
        """[T, D] after the final norm."""
        return in_order(self.packed.layout, self.output.decoded.hidden)

    @property
    def logits(self) -> Tensor:
        """[T, vocabulary] of every token."""
        return self.bagel.language_model.lm_head(self.hidden)

    @property
    def inputs(self) -> Tensor:
        """[T, D] embedded tokens."""
        return in_order(self.packed.layout, self.bagel.embed(self.packed))

    @property
    def layers(self) -> Tensor:
        """[L, T, D] after each layer."""
        assert self.output.decoded.layers is not None
        return torch.stack([in_order(self.packed.layout, layer) for layer in self.output.decoded.layers])


@torch.no_grad()
def run(bagel: Bagel, blocks: Sequence[Block], past: Past | None = None, *, position: int | None = None) -> Run:
    """One row of blocks after a context, at its position unless another is given."""
    past = past or Past()
    start = past.position if position is None else position
    packed = pack([list(blocks)], bagel.config, start=[start])
    output = bagel(packed, list(past.parts), keep=True, trace=True)
    after = Past(parts=(*past.parts, output.part), position=int(packed.next_position[0]))
    return Run(packed=packed, output=output, bagel=bagel, past=after)


def text(ids: Sequence[int]) -> TextBlock:
    """A text as recorded, begin and end included."""
    return TextBlock(ids=list(ids))


def latents(tokens: Tensor, grid: tuple[int, int], time: float = 0.0, *, noisy: bool = False) -> LatentBlock:
    """A block of latent tokens."""
    return LatentBlock(tokens=tokens, grid=grid, time=time, noisy=noisy)


def noisy(tokens: Tensor, grid: tuple[int, int], time: float) -> LatentBlock:
    """A block that is being denoised."""
    return latents(tokens, grid, time, noisy=True)


def look(pixel_values: Tensor, config: BagelConfig) -> LookBlock:
    """An image that was resized and normalised for the vision tower."""
    p = config.vit.patch_size
    grid = (pixel_values.shape[1] // p, pixel_values.shape[2] // p)
    return LookBlock(patches=patchify(pixel_values, p), grid=grid)


def vit_pixels(image: Tensor, config: BagelConfig, num_tokens: int) -> Tensor:
    """The vision tower's view of an image that was recorded only by its number of tokens.

    The sets resize for the tower to at most its image_size; where that does not give the recorded number, the grid of
    that many patches whose shape is nearest to the image's is taken.
    """
    p = config.vit.patch_size
    rule = ResizeRule(longest=config.vit.image_size, shortest=2 * p, stride=p)
    size = resized_size(*image.shape[1:], rule)
    if size[0] * size[1] != num_tokens * p * p:
        grid = nearest_grid(num_tokens, image.shape[1] / image.shape[2])
        size = (grid[0] * p, grid[1] * p)
    image = image if tuple(image.shape[1:]) == size else resample(image, *size)
    return normalise(image)


def nearest_grid(num_tokens: int, ratio: float) -> tuple[int, int]:
    """The grid of so many tokens whose height over width is nearest to a ratio."""
    grids = [(r, num_tokens // r) for r in range(1, num_tokens + 1) if num_tokens % r == 0]
    return min(grids, key=lambda g: abs(math.log(g[0] / g[1] / ratio)))


def grid_from_ids(position_ids: Tensor, side: int) -> tuple[int, int]:
    """Tokens high and wide, out of the rows of a position table with so many to a side."""
    rows, columns = (position_ids // side).unique(), (position_ids % side).unique()
    assert len(rows) * len(columns) == len(position_ids), "the recorded position ids are no grid"
    return len(rows), len(columns)


def image_grid(image_u8: Tensor, config: BagelConfig) -> tuple[int, int]:
    """Latent tokens high and wide of a finished image [H, W, 3]."""
    return image_u8.shape[0] // config.latent_stride, image_u8.shape[1] // config.latent_stride


def recorded_image(name: str) -> Tensor:
    """The context image of a file, float [3, H, W] in [0, 1]."""
    return to_float(arrays(name)["image_u8"])


def time_of(suffix: str) -> float:
    """`t1`, `t07`, `t015` -> 1, 0.7, 0.15."""
    return float(f"{suffix[1]}.{suffix[2:] or 0}")


def normalise(images):
    """[0, 1] -> [-1, 1], which is how the records hold what the towers read."""
    return (images - 0.5) / 0.5


def denormalise(images):
    """[-1, 1] -> [0, 1], clamped."""
    return (images * 0.5 + 0.5).clamp(0, 1)


def in_order(layout, x):
    """[N, ...] in the order of the rows' tokens, as the records hold it, instead of understanding tokens first."""
    return x if layout.slot is None else x.index_select(0, layout.slot.argsort())
