"""Images of the shapes world in its own words, for models that cannot see."""

from __future__ import annotations

from typing import Any

import numpy as np

from r3_rl.worlds.shapes.inspector import inspect
from r3_rl.worlds.shapes.language import listing
from r3_rl.worlds.shapes.scene import reading_order


def describe_shapes(picture: Any) -> str:
    """Say what the world's inspector sees in a picture, a PIL image of 36 x 36 pixels, in the world's own words.

    >>> from PIL import Image
    >>> from r3_rl.worlds.shapes.drawing import render
    >>> from r3_rl.worlds.shapes.scene import Obj
    >>> drawn = render([(Obj("red", "circle", 0, 2),)])[0]
    >>> describe_shapes(Image.fromarray((drawn.transpose(1, 2, 0) * 255).round().astype(np.uint8)))
    'red circle top right'
    """
    pixels = np.asarray(picture.convert("RGB"), np.float32).transpose(2, 0, 1) / 255
    return listing(reading_order(inspect(pixels[None])[0]))
