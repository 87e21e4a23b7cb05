"""The verb `r3 demo`: the whole of R3 on the embedded model in a few minutes on a CPU."""

from __future__ import annotations

import time
from pathlib import Path

from r3_rl.assemble import world_tags
from r3_rl.evaluate.results import print_headline
from r3_rl.evaluate.run import RunResult, train
from r3_rl.evaluate.shapes import ShapesBench
from r3_rl.observe.progress import duration
from r3_rl.observe.recorder import new_run_folder
from r3_rl.recipe_io import find_recipe, load_recipe

MAX_STEPS = 160
"""About what two idle cores train in six minutes beside measuring; on a slower machine the clock ends it before."""


def demo(*, out: str = "runs/demo", seed: int = 0, minutes: float = 6.0) -> RunResult:
    """Train the shipped model with `shapes_r3` for a few minutes and print what changed, the headline last.

    Args:
        out: run folder; an existing one is never overwritten (a number is appended).
        seed: of the run.
        minutes: how long the whole takes at most, measuring included and starting aside.
    """
    begin = time.monotonic()
    target = Path(out)
    recipe = load_recipe(
        "shapes_r3",
        [
            f"training.seed={seed}",
            f"training.max_steps={MAX_STEPS}",
            f"training.save_steps={MAX_STEPS}",
        ],
    )
    # sets that two idle cores measure in about 25 s each time
    bench = ShapesBench(
        num_prompts=320,
        num_fixed=300,
        num_right=160,
        num_questions=300,
        num_swap=150,
        num_pairs=120,
        num_plans=160,
        num_edits=160,
        num_others=100,
        tags=world_tags(recipe.data),
    )
    result = train(
        recipe,
        bench=bench,
        folder=new_run_folder(target.parent, target.name),
        source=find_recipe("shapes_r3").read_text(encoding="utf-8"),
        headline=False,
        limit_s=60 * minutes,
    )
    print(f"adapter {result.folder / 'adapter'}")
    print(f"demo done in {duration(time.monotonic() - begin)}: open {result.folder / 'report.html'}")
    if result.evaluation:
        print_headline(result.evaluation)
    return result
