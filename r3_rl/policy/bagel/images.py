"""Images on their way into the model and out of it: resizing, transforms, patches.

Inside the toolkit an image is float32 [3, H, W] in [0, 1]; at its borders uint8 [H, W, 3].
"""

from __future__ import annotations

from functools import cache
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from r3_rl.errors import InputError
from r3_rl.pixels import flat_rgb, to_uint8
from r3_rl.policy.bagel.config import ResizeRule

ImageLike: TypeAlias = Tensor | np.ndarray | Image.Image


@cache  # of few sizes, asked for every image of every context
def resized_size(height: int, width: int, rule: ResizeRule) -> tuple[int, int]:
    """The size (height, width) that an image is brought to.

    scale = max(min(longest / long, 1), shortest / short), then each side is rounded to a multiple of the stride; where
    the longer side still exceeds `longest`, both are scaled again by longest / long. Source: BAGEL's image transforms.

    >>> resized_size(1080, 1920, ResizeRule(longest=1024, shortest=512, stride=16))
    (576, 1024)
    """
    if height < 1 or width < 1:
        raise InputError(f"an image of {height} x {width} pixels has no content")
    scale = max(min(rule.longest / max(height, width), 1.0), rule.shortest / min(height, width))
    sides = _scaled(height, width, scale, rule.stride)
    if max(sides) > rule.longest:
        sides = _scaled(*sides, rule.longest / max(sides), rule.stride)
    return sides


def _scaled(height: int, width: int, scale: float, stride: int) -> tuple[int, int]:
    def side(pixels: int) -> int:
        return max(stride, round(round(pixels * scale) / stride) * stride)

    return side(height), side(width)


def to_float(image: ImageLike) -> Tensor:
    """An image of any accepted kind as float32 [3, H, W] in [0, 1].

    Args: image: PIL image, uint8 [H, W, 3] or [H, W] array (or tensor), or float [3, H, W] tensor in [0, 1].
    Raises InputError for any other shape or type, and for float values outside [0, 1].

    >>> to_float(np.full((2, 4, 3), 255, dtype=np.uint8)).shape
    torch.Size([3, 2, 4])
    """
    if isinstance(image, Image.Image):
        image = np.asarray(flat_rgb(image))
    x = torch.from_numpy(np.array(image)) if isinstance(image, np.ndarray) else image
    if x.dtype == torch.uint8:
        if x.ndim == 2:
            x = x[:, :, None].expand(-1, -1, 3)
        if x.ndim != 3 or x.shape[2] != 3:
            raise InputError(f"a uint8 image has shape {list(x.shape)}", hint="give [height, width, 3]")
        return (x.permute(2, 0, 1).to(torch.float32) / 255).contiguous()
    if not x.is_floating_point() or x.ndim != 3 or x.shape[0] != 3:
        raise InputError(
            f"an image of type {x.dtype} and shape {list(x.shape)} is not understood",
            hint="give uint8 [height, width, 3] or float [3, height, width] in [0, 1]",
        )
    x = x.detach().to(torch.float32)
    if x.numel() and not bool((x.amin() >= 0) & (x.amax() <= 1)):
        raise InputError(
            f"a float image holds values from {float(x.amin()):g} to {float(x.amax()):g}",
            hint="float images are in [0, 1]; divide by 255, or give uint8",
        )
    return x


def resize(image: Tensor, rule: ResizeRule) -> Tensor:
    """An image float [3, H, W] in [0, 1] brought to its `resized_size`.

    An image that already has its size is returned as it is: nothing is resampled and nothing is rounded to 8 bits.

    >>> resize(torch.rand(3, 20, 30), ResizeRule(longest=64, shortest=32, stride=16)).shape
    torch.Size([3, 32, 48])
    """
    height, width = image.shape[-2:]
    target = resized_size(height, width, rule)
    if target == (height, width):
        return image
    return resample(image, *target)


def resample(image: Tensor, height: int, width: int) -> Tensor:
    """An image float [3, H, W] in [0, 1] at another size: bicubic, antialiased.

    It goes through 8 bits, because the weights were trained on images resampled so.
    """
    picture = Image.fromarray(to_uint8(image))
    return to_float(picture.resize((width, height), Image.Resampling.BICUBIC)).to(image.device)


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cuts images into square patches in row-major order, each flattened as (row, column, channel).

    [3, H, W] -> [T, patch * patch * 3] and [B, 3, H, W] -> [B, T, patch * patch * 3], T = H / patch * W / patch.

    >>> patchify(torch.arange(12.0).view(3, 2, 2), 2).tolist()
    [[0.0, 4.0, 8.0, 1.0, 5.0, 9.0, 2.0, 6.0, 10.0, 3.0, 7.0, 11.0]]
    """
    *batch, channels, height, width = images.shape
    if height % patch or width % patch:
        raise InputError(
            f"an image of {height} x {width} pixels does not divide into patches of {patch}",
            hint="bring it to a multiple with resize()",
        )
    rows, cols = height // patch, width // patch
    grid = images.reshape(-1, channels, rows, patch, cols, patch).permute(0, 2, 4, 3, 5, 1)
    return grid.reshape(*batch, rows * cols, patch * patch * channels)
