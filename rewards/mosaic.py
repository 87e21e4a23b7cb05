"""Does an image of the mosaic world show exactly what its prompt asks for?

Source: the world's inspector and edit metric (`r3_rl.worlds.shapes`); `mosaic_second` reads images with a small network
instead (`worlds/shapes/second_inspector.py`), so train with one of the others and evaluate with it. Range: 0 to 1.
Weights: none, of `mosaic_second` 0.3 MB in the package, Apache-2.0. Memory: none to speak of. Cannot judge: anything
but 60 x 60 images of up to 25 circles, squares, triangles and crosses. `mosaic` pays in part for being near.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from r3_rl.rewards.shapes import LogExtra, judge_images, weighed
from r3_rl.scoring.base import scorer_info

_JUDGING = {"packages": ("scipy",), "install": "pip install 'r3-rl[train]'"}


@scorer_info(range=(0.0, 1.0), needs=("images", "include"), deterministic=True, **_JUDGING)
def mosaic(
    images: Sequence[Any],
    include: Sequence[list[dict[str, Any]]],
    *,
    strict_weight: float = 0.7,
    log_extra: LogExtra | None = None,
    **columns: Any,
) -> list[float | None]:
    """Score w strict + (1 - w) partial, w = `strict_weight` in [0, 1].

    strict is 1 for the stated counts, colours, sizes and positions without another or a malformed object, else 0;
    partial = max(0, 1 - edits needed / objects asked for).
    `images` are uint8 [60, 60, 3], PIL images or float [3, 60, 60] in [0, 1]; `include` is GenEval's, with `size`.

    >>> from r3_rl.worlds.base import find_world
    >>> world = find_world("mosaic")
    >>> image = world.draw([world.read_plan("<think> small red circle upper left </think>")])[0]
    >>> mosaic([image], [[{"class": "circle", "count": 1, "size": "large"}]])
    [0.0]
    """
    return weighed(_judge(images, include, log_extra), strict_weight)


@scorer_info(range=(0.0, 1.0), needs=("images", "include"), deterministic=True, **_JUDGING)
def mosaic_strict(
    images: Sequence[Any],
    include: Sequence[list[dict[str, Any]]],
    *,
    log_extra: LogExtra | None = None,
    **columns: Any,
) -> list[float | None]:
    """Score 1 for exactly what the prompt asks for, else 0; arguments are those of `mosaic`."""
    return [j and float(j.strict) for j in _judge(images, include, log_extra)]


@scorer_info(range=(0.0, 1.0), needs=("images", "include"), deterministic=True, **_JUDGING)
def mosaic_second(
    images: Sequence[Any],
    include: Sequence[list[dict[str, Any]]],
    *,
    log_extra: LogExtra | None = None,
    **columns: Any,
) -> list[float | None]:
    """Score as `mosaic_strict` what the network reads."""
    from r3_rl.worlds.shapes.mosaic.board import MOSAIC
    from r3_rl.worlds.shapes.second_inspector import inspect

    return [j and float(j.strict) for j in judge_images(images, include, log_extra, inspect, MOSAIC)]


def _judge(images: Sequence[Any], include: Sequence[Any], log_extra: LogExtra | None) -> list[Any]:
    from r3_rl.worlds.shapes.inspector import inspect
    from r3_rl.worlds.shapes.mosaic.board import MOSAIC

    return judge_images(images, include, log_extra, inspect, MOSAIC)
