"""Images a second through a server of scorers, against the same scorer in this process.

The server is a process of its own, started with `r3 rewards serve`. Every turn scores images that neither side has
seen, so no cache answers. The PNG column is what packing and unpacking alone cost, on one core.

    python benchmarks/scorer_server.py --help
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from machine import Report, middle

from r3_rl.scoring.panel import Panel, ScorerSpec
from r3_rl.scoring.png import decode_png, encode_png
from r3_rl.scoring.registry import load_scorer
from r3_rl.types import Prompt


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scorer", default="sharpness", help="an installed scorer that needs images alone")
    parser.add_argument("--sizes", type=int, nargs="+", default=[36, 256, 512, 1024], help="sides in pixels")
    parser.add_argument("--count", type=int, default=64, help="images in a batch")
    parser.add_argument("--repeat", type=int, default=5, help="turns of both ways; medians are shown")
    parser.add_argument("--out", help="also write the numbers to this JSON file")
    return parser.parse_args()


def pictures(count: int, size: int, dice: np.random.Generator) -> list[np.ndarray]:
    """Smooth colours with a little noise: they compress about as well as photographs do."""
    y, x = np.mgrid[0:size, 0:size] / size
    images = []
    for _ in range(count):
        waves = [np.sin(6 * (a * x + b * y) + c) for a, b, c in dice.uniform(0, 3, (3, 3))]
        noise = dice.normal(0, 4, (size, size, 3))
        images.append(np.clip(128 + 100 * np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8))
    return images


@contextmanager
def served(scorer: str) -> Iterator[str]:
    """Start a server and give its address."""
    command = [sys.executable, "-m", "r3_rl", "rewards", "serve", scorer, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield line.split(" at ")[1].split()[0]
        finally:
            process.terminate()


def seconds_of(panel: Panel, images: Sequence[np.ndarray]) -> float:
    """Time to score a batch, metrics and checks included."""
    from r3_rl.scoring.batch import ScoreBatch

    batch = ScoreBatch(prompts=[Prompt(text="a picture")] * len(images), images=images)
    start = time.perf_counter()
    panel.score(batch)
    panel.metrics()
    return time.perf_counter() - start


def packing(images: Sequence[np.ndarray]) -> tuple[float, float]:
    """Seconds for PNG in both directions, and bytes of the last image over its raw bytes."""
    start = time.perf_counter()
    for image in images:
        packed = encode_png(image)
        decode_png(packed, max_pixels=image.size)
    return time.perf_counter() - start, len(packed) / images[-1].nbytes


def main() -> None:
    args = arguments()
    dice = np.random.default_rng(0)
    rows, numbers = [], []
    with served(args.scorer) as url:
        build: Callable[[Any], Panel] = lambda scorer: Panel([ScorerSpec(name="s", scorer=scorer)])  # noqa: E731
        with build(load_scorer(args.scorer)) as here, build(load_scorer("remote", {"url": url})) as there:
            for size in args.sizes:
                seconds: dict[str, list[float]] = {"here": [], "there": [], "png": []}
                first = pictures(args.count, size, dice)
                for turn in range(args.repeat + 1):  # the first warms up
                    images = [np.roll(image, turn, axis=0) for image in first]  # new to every cache
                    taken = {"here": seconds_of(here, images), "there": seconds_of(there, images)}
                    png_s, ratio = packing(images)
                    for way, value in {**taken, "png": png_s}.items() if turn else ():
                        seconds[way].append(value)
                speed = {way: args.count / middle(values) for way, values in seconds.items()}
                rows.append([f"{size} x {size}", *(f"{speed[way]:.0f}" for way in speed), f"{ratio:.2f}"])
                numbers.append({"size": size, "png_ratio": ratio, **speed})
    report = Report(
        title=f"{args.scorer}: images/s, batches of {args.count}, medians of {args.repeat}",
        columns=["image", "in process", "through the server", "PNG alone", "PNG / raw bytes"],
        rows=rows,
        notes=["The server ran on the same machine, so both sides share its cores."],
        numbers={"rows": numbers},
    )
    report.show(args.out)


if __name__ == "__main__":
    main()
