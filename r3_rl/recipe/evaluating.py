"""Section `eval`: benches of `r3 eval` that a run is measured by, before it begins and when it has ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from r3_rl.recipe.base import Problem, Section

MOST_ROUNDS = 16


class EvalSection(Section):
    """What is measured before and after training, in addition to the figures of a world, and what is kept by it."""

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
        False,
        description="Measure every training.eval_steps too, as `keep_best` does anyway; each time costs what the "
        "first one did.",
    )
    keep_best: bool = Field(
        False,
        description="Measure every training.eval_steps and write the adapter (or the full weights) of the best step to "
        "`best/` of the run; `adapter/` stays that of the last step.",
    )
    metric: str | None = Field(
        None,
        min_length=3,
        max_length=200,
        description="What `keep_best` goes by: `BENCH/FIGURE` with the names of `eval/table.json`, such as "
        "`shapes.drawing/round_2`, with greedy texts. Null takes the headline figure of the first bench at the largest "
        "edit budget. Figures of single kinds of prompts and distances of whole sets (FID) cannot be chosen.",
    )
    wanted: Literal["more", "less"] | None = Field(
        None, description="Whether `metric` is to rise or to fall; null takes what the figure says of itself."
    )
    patience: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="End the run when so many measurements in a row brought no better `metric`; null never does.",
    )
    min_gain: float = Field(
        0.0, ge=0, le=1_000_000, description="By how much a measurement has to be better to count for `patience`."
    )

    def problems(self) -> Iterator[Problem]:
        """Of the keys that say which step is the best."""
        if self.keep_best and not self.benches:
            yield Problem("keep_best", "nothing says which step is the best; name a bench in eval.benches")
        for key in ("metric", "wanted", "patience", "min_gain"):
            if not self.keep_best and getattr(self, key) != type(self).model_fields[key].default:
                yield Problem(key, "nothing follows it; set eval.keep_best to true, or leave it out")
        if self.min_gain and self.keep_best and self.patience is None:
            yield Problem("min_gain", "nothing follows it; set eval.patience, or leave it out")
