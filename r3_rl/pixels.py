"""Images at the borders: uint8 [H, W, 3] for whoever looks at them, float [3, H, W] in [0, 1] inside."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from r3_rl.errors import DataError

if TYPE_CHECKING:
    import torch
    from PIL import Image


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Turn float images in [0, 1] into levels, channels last: round(255 clamp(x, 0, 1)), half to even.

    Truncation, which samplers are released with, darkens every image by half a level on average, and scorers would see
    other pixels than people. uint8 -> float -> uint8 is exact.

    Args:
        images: [3, H, W] or [B, 3, H, W].

    Returns:
        uint8 [H, W, 3] or [B, H, W, 3].

    >>> import torch
    >>> to_uint8(torch.tensor([0.0, 0.5, 0.999]).view(3, 1, 1)).ravel().tolist()
    [0, 128, 255]
    """
    levels = images.detach().float().clamp(0, 1).mul(255).round().byte()
    return levels.movedim(-3, -1).contiguous().cpu().numpy()


def from_picture(picture: Image.Image) -> torch.Tensor:
    """Return a PIL image as float32 [3, H, W] in [0, 1], without transparency.

    >>> from PIL import Image
    >>> from_picture(Image.new("L", (2, 1), 255)).shape
    torch.Size([3, 1, 2])
    """
    import torch

    # numpy, since a server calls this from many threads, and torch would start a pool of its own in each
    levels = np.asarray(flat_rgb(picture), dtype=np.float32) / np.float32(255)
    return torch.from_numpy(np.ascontiguousarray(levels.transpose(2, 0, 1)))


def open_image(image: Path | bytes) -> torch.Tensor:
    """Return float32 [3, H, W] in [0, 1] of a picture's file, or of what it holds.

    Raises:
        DataError: not an image that can be read.
    """
    from PIL import Image, UnidentifiedImageError

    place = str(image) if isinstance(image, Path) else "an image in the file"
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return from_picture(opened)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        why = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{place}: {why}", hint="fetch it again") from None


def flat_rgb(picture: Image.Image) -> Image.Image:
    """Return a PIL image as RGB without transparency: transparent pixels become white, as on a page, and not whatever
    lies beneath them.

    >>> from PIL import Image
    >>> flat_rgb(Image.new("RGBA", (1, 1), (200, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    if picture.has_transparency_data:
        from PIL import Image

        picture = picture.convert("RGBA")
        page = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(page, picture)
    if picture.mode.startswith("I;16"):  # Pillow would cut 16 bits off at 255, which leaves white
        from PIL import Image

        picture = Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
    return picture.convert("RGB")


__all__ = ["flat_rgb", "from_picture", "to_uint8"]
