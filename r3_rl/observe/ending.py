"""How a run ended: `ended.json`, which is written last, so that a run without it is going on or was killed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

FILE = "ended.json"
Way = Literal["done", "clock", "metric", "guard", "signal"]
"""By its last step, its clock, because its metric got no better, by a guard, by a signal."""
WAYS = get_args(Way)


@dataclass(frozen=True, kw_only=True)
class Ending:
    """The end of a run.

    >>> Ending(step=4, num_steps=4, why="done").early
    False
    """

    step: int
    """The last one that was done."""
    num_steps: int
    """Steps of its recipe."""
    why: Way
    words: str = ""
    """One sentence on an early end, with what to do."""

    @property
    def early(self) -> bool:
        """Whether steps of the recipe are left."""
        return self.why != "done"

    def document(self) -> dict[str, int | str]:
        """What `ended.json` holds."""
        return asdict(self)


def read_ending(run_folder: Path) -> Ending | None:
    """Return how a run ended, or None if nothing readable says so."""
    try:
        found = json.loads((run_folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    types = {"step": int, "num_steps": int, "why": str, "words": str}
    if not isinstance(found, dict) or {name: type(value) for name, value in found.items()} != types:
        return None
    return Ending(**found) if found["why"] in WAYS else None
