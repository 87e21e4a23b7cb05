"""The verb `r3 demo`: the whole of R3 on the model of a world in a few minutes on a CPU."""

from __future__ import annotations

import time
from pathlib import Path

from r3_rl.errors import InputError
from r3_rl.evaluate.base import bench_of
from r3_rl.evaluate.results import print_headline
from r3_rl.evaluate.run import RunResult, train
from r3_rl.observe.progress import duration
from r3_rl.observe.recorder import new_run_folder
from r3_rl.recipe_io import find_recipe, load_recipe
from r3_rl.worlds.base import find_world


def demo(*, world: str | None = None, out: str = "runs/demo", seed: int = 0, minutes: float = 6.0) -> RunResult:
    """Train the model that ships with a world for a few minutes and print what changed, the headline last.

    Args:
        world: its name; None takes the embedded one.
        out: run folder; an existing one is never overwritten (a number is appended).
        seed: of the run.
        minutes: how long the whole takes at most, measuring included and starting aside.

    Raises:
        InputError: an unknown world, or one that has no demo.
    """
    begin = time.monotonic()
    target, place = Path(out), find_world(world)
    shown = place.demo
    if shown is None:
        raise InputError(f"the world '{place.name}' has no demo", hint="run a recipe of it with `r3 train`")
    recipe = load_recipe(
        shown.recipe,
        [
            f"training.seed={seed}",
            f"training.max_steps={shown.max_steps}",
            f"training.save_steps={shown.max_steps}",
        ],
    )
    result = train(
        recipe,
        bench=bench_of(recipe, **shown.sizes),
        folder=new_run_folder(target.parent, target.name),
        source=find_recipe(shown.recipe).read_text(encoding="utf-8"),
        headline=False,
        limit_s=60 * minutes,
    )
    if result.exit_code:
        return result
    print(f"adapter {result.folder / 'adapter'}")
    print(f"demo done in {duration(time.monotonic() - begin)}: open {result.folder / 'report.html'}")
    if result.evaluation:
        print_headline(result.evaluation)
    return result
