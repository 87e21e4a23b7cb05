"""`r3 study`: which way of training raises what?"""

from __future__ import annotations

from pathlib import Path

from r3_rl.errors import InputError

MOST_AT_ONCE, MOST_SEEDS = 64, 1000


def study(
    folder: str,
    /,
    *overrides: str,
    recipe: str | None = None,
    arms: str = "",
    seeds: int | None = None,
    jobs: int = 1,
    against: str | None = None,
) -> None:
    """Train one recipe in several ways, with several seeds each, and compare what they changed.

    Args:
        folder: of the study. Give it again to go on with one, or to add arms and seeds.
        overrides: settings of every arm, such as training.max_steps=80.
        recipe: that the arms change, such as shapes_r3.
        arms: names with commas between: arms, groups (main, heads, credit, routing, coordination, all), or recipes.
        seeds: how many of every arm; 3 in a new study.
        jobs: runs side by side; they share the cores.
        against: the arm that the others are compared with; without it r3, or the first.
    """
    from r3_rl.study.run import study as run

    if not 1 <= jobs <= MOST_AT_ONCE:
        raise InputError(f"--jobs {jobs}: from 1 to {MOST_AT_ONCE}")
    if seeds is not None and not 1 <= seeds <= MOST_SEEDS:
        raise InputError(f"--seeds {seeds}: from 1 to {MOST_SEEDS}")
    names = [name.strip() for name in arms.split(",") if name.strip()]
    page = run(
        Path(folder), recipe=recipe, arms=names, num_seeds=seeds, overrides=overrides, at_once=jobs, against=against
    )
    print(f"report {page}")
