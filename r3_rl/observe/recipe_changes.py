"""What was changed of a run's recipe when the run was resumed: `recipe.changes.jsonl`, one line a resume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r3_rl.observe.recorder import read_lines

CHANGES = "recipe.changes.jsonl"


@dataclass(frozen=True, kw_only=True)
class RecipeChange:
    """A key that has another value from a step on.

    >>> print(RecipeChange(step=8, key="training.max_steps", old=10, new=20))
    from step 8 on training.max_steps: 10 -> 20
    """

    step: int
    """The last step with the old value."""
    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"from step {self.step} on {self.key}: {self.old} -> {self.new}"


def read_changes(run_folder: Path) -> list[RecipeChange]:
    """The changes of a run in order; what is not readable is left out."""
    return [
        RecipeChange(step=row["step"], key=str(key), old=pair[0], new=pair[1])
        for row in read_lines(run_folder / CHANGES).rows
        if isinstance(row.get("changes"), dict)
        for key, pair in row["changes"].items()
        if isinstance(pair, list) and len(pair) == 2
    ]
