"""Section `eval`: benches of `r3 eval` that a run is measured by, before it begins and when it has ended."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from r3_rl.recipe.base import Section

MOST_ROUNDS = 16


class EvalSection(Section):
    """What is measured before and after training, in addition to the figures of a world."""

    benches: dict[str, str | None] = Field(
        {},
        max_length=32,
        description="Benches by the names of `r3 eval --bench`, each with the file or folder that it reads; null for a "
        "world, which reads none: `{pope: data/pope}`.",
    )
    rounds: tuple[Annotated[int, Field(ge=0, le=MOST_ROUNDS)], ...] = Field(
        (0, 1, 2),
        strict=False,
        min_length=1,
        max_length=MOST_ROUNDS + 1,
        description="Edit budgets that drawing benches report; the largest one is run.",
    )
    num_seeds: int = Field(1, ge=1, le=100, description="How often everything is drawn, with other noise.")
    limit: int | None = Field(100, ge=1, le=10_000_000, description="Most items of a set; null measures all of them.")
    scorers: str | None = Field(
        None,
        min_length=1,
        description="YAML file with the scorers of drawing benches, as `r3 eval --scorers` takes it.",
    )
    during: bool = Field(
        False, description="Measure every training.eval_steps too; each time costs what the first one did."
    )
