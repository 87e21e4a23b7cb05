"""Guards: what the logged numbers say is wrong, and what to try, each in one sentence.

The same guards serve a run that goes on (`LiveGuards`, line by line) and the report (`look`, on all lines). To add one:
a function and a `Guard` in a family's file, its place in `GUARDS`, its key in `r3_rl/recipe/guarding.py`, and a planted
run in `benchmarks/guards.py` in which exactly this goes wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from r3_rl.observe.guards import scores, texts, updates
from r3_rl.observe.guards.base import RATIO_TOLERANCE, Finding, Found, Guard, ratio_tolerance_of
from r3_rl.observe.history import History
from r3_rl.recipe.guarding import Action, GuardsSection

__all__ = ["GUARDS", "Finding", "Found", "Guard", "LiveGuards", "Said", "look", "ratio_tolerance_of"]

GUARDS: Mapping[str, Guard] = MappingProxyType(
    {
        guard.name: guard
        for guard in (
            updates.NOT_FINITE,
            updates.EQUAL_NOISE,
            scores.DEAD_POLICY,
            updates.NO_CHANGE,
            scores.DRAFTS_GET_WORSE,
            scores.DRAFT_COLLAPSE,
            scores.HELD_OUT_FALLS,
            updates.OFF_POLICY_RATIO,
            updates.KL_RUNAWAY,
            updates.CLIP_PINNED,
            texts.ENTROPY_COLLAPSE,
            texts.MALFORMED,
            texts.STOP_RATE,
            scores.MISSING_SCORES,
            scores.EQUAL_GROUPS,
            updates.NEAR_THE_EPSILON,
            updates.MEMORY_GROWTH,
        )
    }
)
"""The gravest first."""
DEFAULTS: Mapping[str, Action] = MappingProxyType(dict(GuardsSection()))
PATIENCE = 10
"""Logged values that a run gets, if a guard that stopped it still speaks when it is resumed."""


def look(
    rows: Sequence[Mapping[str, Any]] | History,
    *,
    actions: Mapping[str, Action] = DEFAULTS,
    ratio_tolerance: float = RATIO_TOLERANCE,
) -> list[Finding]:
    """Return what the guards find in the logged numbers of a run, the gravest first.

    Args:
        rows: lines of `metrics.jsonl` in order, each with `step` and whatever was measured in that step.
        actions: of the recipe; a guard that is `off`, or is not named, does not look.
        ratio_tolerance: largest |ratio - 1| of a first pass that is rounding; see `ratio_tolerance_of`.

    >>> look([{"step": 1, "reward": 0.5}])
    []
    >>> [finding.name for finding in look([{"step": 1, "scores/missing_fraction": 0.25}])]
    ['missing_scores']
    """
    history = rows if isinstance(rows, History) else History(rows)
    found: list[Finding] = []
    explained: set[str] = set()
    for guard in GUARDS.values():
        if actions.get(guard.name, "off") == "off" or guard.name in explained:
            continue
        if (seen := guard.look(history, ratio_tolerance)) is not None:
            found.append(Finding(guard=guard, found=seen))
            explained.update(guard.explains)
    return [finding for finding in found if finding.name not in explained]


@dataclass(frozen=True, kw_only=True)
class Said:
    """A guard's sentence while a run goes on."""

    step: int
    finding: Finding
    stops: bool
    """Whether the run is to end."""

    def __str__(self) -> str:
        verb = "stops the run" if self.stops else "warns"
        return f"guard {self.finding.name} {verb} at step {self.step}: {self.finding.sentence}"


class LiveGuards:
    """The guards of a run that goes on: each speaks once, when it first finds something.

    Args:
        rows: lines that an interrupted run has logged; what they hold was said then. A guard that stops gives a resumed
            run `PATIENCE` lines, then it stops it again.
        actions: of the recipe.
        ratio_tolerance: as in `look`.

    >>> live = LiveGuards()
    >>> [str(said)[:48] for said in live.add({"step": 1, "scores/missing_fraction": 0.25})]
    ['guard missing_scores warns at step 1: scores wer']
    >>> live.add({"step": 2, "scores/missing_fraction": 0.25})
    []
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]] = (),
        *,
        actions: Mapping[str, Action] = DEFAULTS,
        ratio_tolerance: float = RATIO_TOLERANCE,
    ) -> None:
        self._history, self._actions, self._tolerance = History(rows), actions, ratio_tolerance
        self._said = {finding.name for finding in self._look()}
        self._patient = {name for name in self._said if actions.get(name) == "stop"}
        self._ends_at = self._history.num_rows + PATIENCE

    def add(self, row: Mapping[str, Any]) -> list[Said]:
        """Take the line of a step; return what is new."""
        self._history.add(row)
        if self._patient and self._history.num_rows > self._ends_at:
            self._said -= self._patient
            self._patient = set()
        new = [finding for finding in self._look() if finding.name not in self._said]
        self._said.update(finding.name for finding in new)
        return [Said(step=row["step"], finding=f, stops=self._actions[f.name] == "stop") for f in new]

    def _look(self) -> list[Finding]:
        return look(self._history, actions=self._actions, ratio_tolerance=self._tolerance)
