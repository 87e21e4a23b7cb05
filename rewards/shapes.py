"""Does a picture of the embedded shapes world show exactly what its prompt asks for?

Source: the world's own inspector and edit metric (`r3_rl.worlds.shapes`). Range: 0 to 1. Weights: none. Memory: none.
Cannot judge: anything but 36 x 36 pictures of up to nine circles, squares, triangles and crosses. `shapes` pays in part
for being near; `shapes_strict` is what to evaluate with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from r3_rl.errors import DataError
from r3_rl.scoring.base import scorer_info

if TYPE_CHECKING:  # `r3 rewards ls` and `r3 check` import this file and need neither numpy nor the world
    import numpy as np

    from r3_rl.worlds.shapes.board import Board
    from r3_rl.worlds.shapes.judging import Judgement
    from r3_rl.worlds.shapes.scene import Scene

LogExtra = Callable[[str, list[Any]], None]


_JUDGING = {"packages": ("scipy",), "install": "pip install 'r3-rl[train]'"}


@scorer_info(range=(0.0, 1.0), needs=("images", "include"), deterministic=True, **_JUDGING)
def shapes(
    images: Sequence[Any],
    include: Sequence[list[dict[str, Any]]],
    *,
    strict_weight: float = 0.7,
    log_extra: LogExtra | None = None,
    **columns: Any,
) -> list[float | None]:
    """Score w strict + (1 - w) partial, w = `strict_weight` in [0, 1].

    strict is 1 for the stated counts, colours and positions without another or a malformed object, else 0;
    partial = max(0, 1 - edits needed / objects asked for).
    `images` are uint8 [36, 36, 3], PIL images or float [3, 36, 36] in [0, 1]; `include` is GenEval's column.

    >>> from r3_rl.worlds.shapes.drawing import render
    >>> from r3_rl.worlds.shapes.scene import Obj
    >>> picture = render([(Obj("red", "circle", 0, 0),)])[0]
    >>> asked = [{"class": "circle", "count": 1}, {"class": "cross", "count": 1}]
    >>> [round(score, 2) for score in shapes([picture], [asked])]
    [0.15]
    """
    judgements = _judge(images, include, log_extra)
    return weighed(judgements, strict_weight)


@scorer_info(range=(0.0, 1.0), needs=("images", "include"), deterministic=True, **_JUDGING)
def shapes_strict(
    images: Sequence[Any],
    include: Sequence[list[dict[str, Any]]],
    *,
    log_extra: LogExtra | None = None,
    **columns: Any,
) -> list[float | None]:
    """Score 1 for exactly what the prompt asks for, else 0; arguments are those of `shapes`."""
    return [j and float(j.strict) for j in _judge(images, include, log_extra)]


def _judge(images: Sequence[Any], include: Sequence[Any], log_extra: LogExtra | None) -> list[Judgement | None]:
    from r3_rl.worlds.shapes.board import NINE
    from r3_rl.worlds.shapes.inspector import inspect

    return judge_images(images, include, log_extra, inspect, NINE)


def judge_images(
    images: Sequence[Any],
    include: Sequence[Any],
    log_extra: LogExtra | None,
    inspect: Callable[[np.ndarray, Board], list[Scene]],
    board: Board,
) -> list[Judgement | None]:
    """What an inspector sees in images of a board, judged; None for a prompt that the board cannot hold."""
    if not len(images):
        return []
    import numpy as np

    from r3_rl.worlds.shapes.judging import judge

    seen = inspect(np.stack([as_floats(image) for image in images]), board)
    cells = len(board.cells)
    judgements = [
        judge(s, {"include": asked}, board) if fits_the_grid(asked, cells) else None
        for s, asked in zip(seen, include, strict=True)
    ]
    if log_extra is not None:
        log_extra("reason", [j.words if j else "" for j in judgements])
        if None in judgements:
            unfit = f"it asks for no object, or for more than the {cells} cells hold"
            log_extra("cause", ["" if j else unfit for j in judgements])
    return judgements


def weighed(judgements: Sequence[Judgement | None], strict_weight: float) -> list[float | None]:
    """w strict + (1 - w) partial, w = `strict_weight` in [0, 1]."""
    if not 0 <= strict_weight <= 1:
        raise ValueError(f"strict_weight must lie between 0 and 1, not {strict_weight}")
    return [j and strict_weight * j.strict + (1 - strict_weight) * j.partial for j in judgements]


def fits_the_grid(include: Sequence[Any], cells: int = 9) -> bool:
    """Whether there are cells for what is asked for; judging takes work and memory with the square of the counts.

    >>> fits_the_grid([{"class": "circle", "count": 9}]), fits_the_grid([{"class": "circle", "count": 10**9}])
    (True, False)
    """
    counts = [int(group["count"]) for group in include[: cells + 1]]
    return 1 <= len(include) <= cells and min(counts) >= 1 and sum(counts) <= cells


def as_floats(image: Any) -> np.ndarray:
    """Float32 [3, H, W] in [0, 1] of a uint8 [H, W, 3] array, a PIL image, or a float [3, H, W] array or tensor.

    >>> import numpy as np
    >>> as_floats(np.full((4, 4, 3), 255, np.uint8)).max()
    np.float32(1.0)
    """
    import numpy as np

    if hasattr(image, "detach"):
        image = image.detach().cpu().float().numpy()
    elif hasattr(image, "convert"):
        image = image.convert("RGB")
    pixels = np.asarray(image)
    if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[-1] == 3:
        return pixels.transpose(2, 0, 1).astype(np.float32) / 255
    if np.issubdtype(pixels.dtype, np.floating) and pixels.ndim == 3 and pixels.shape[0] == 3:
        return pixels.astype(np.float32)
    raise DataError(
        f"cannot read an image of {pixels.dtype} {list(pixels.shape)}",
        hint="give uint8 [H, W, 3], a PIL image, or float [3, H, W] in [0, 1]",
    )
