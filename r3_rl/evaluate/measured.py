"""What a measurement gives: values item by item, in two decodings of the texts, their intervals and differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from r3_rl.modalities import TextSegment
from r3_rl.observe.common_items import interval_of
from r3_rl.observe.measures import GREEDY, OWN, greedy, measure_of
from r3_rl.observe.statistics import Interval, paired_difference, unpaired_difference
from r3_rl.stages.settings import LoopSettings
from r3_rl.types import Prompt, Trajectory, Verdict

CHUNK = 128
"""Rows of one pass: enough to keep the processor busy, few enough for its cache and memory."""

Values = dict[str, list[float]]
"""1 for right and 0 for wrong, or a number in the unit of its name, for every item of every measurement, by its name in
`observe.measures`."""


class Items(Protocol):
    """What a bench measures on. The same items give figures that can be compared."""

    @property
    def prompts(self) -> Sequence[Prompt]:
        """The held-out prompts of the loop; the first ones are also drawn while a run goes on."""
        ...

    @property
    def seed(self) -> int:
        """Of the loop on the prompts."""
        ...

    def texts(self) -> dict[str, list[str]]:
        """Return what each item of each set asks for: on equal ones runs can be compared."""
        ...


@dataclass(kw_only=True, eq=False)
class Measured:
    """One phase: the rows of a bench, figure by figure."""

    values: Values = field(default_factory=dict)
    trajectories: list[Trajectory] = field(default_factory=list)
    """Of the loop with sampled texts, one for each of the items' prompts."""
    words: dict[str, str] = field(default_factory=dict)
    """What tables call figures of a world's own, such as `questions/count`, by their names without decoding."""
    items: Items | None = None
    """What it was measured on, for the next phase: with what a first phase adds, such as the base's own drafts. None
    if it is part of another measurement."""

    def add(self, values: Mapping[str, list[float]], suffix: str = "") -> None:
        """Take over values under their name in one decoding. A measurement without items gives no figure.

        >>> measured = Measured()
        >>> measured.add({"draft": [1.0], "image_right_given_plan": []}, "_greedy")
        >>> measured.values
        {'draft_greedy': [1.0]}
        """
        named = greedy if suffix == GREEDY else str
        self.values |= {named(name): items for name, items in values.items() if items}

    def intervals(self) -> dict[str, Interval]:
        """Shares with Wilson's 95 % intervals; means with a bootstrap's."""
        return {name: interval_of(name)(values) for name, values in self.values.items() if values}


def decodings(settings: LoopSettings) -> dict[str, LoopSettings]:
    """How texts are written, by the suffix of the names: sampled as the settings say, and by the likeliest words."""
    return {"": settings, GREEDY: settings.for_evaluation(0.0)}


def differences(before: Mapping[str, list[float]], after: Mapping[str, list[float]]) -> dict[str, Interval]:
    """After - before with 95 % intervals: paired for what was measured on the same items, unpaired for what was
    measured on the policy's own; nothing for the swap test, whose two critics are compared within a phase.

    >>> before = {"draft": [0.0, 1.0], "repair_round_1": [1.0]}
    >>> found = differences(before, {"draft": [1.0, 1.0], "repair_round_1": [0.0, 0.0]})
    >>> found["draft"].mean, found["repair_round_1"].mean
    (0.5, -1.0)
    """
    out: dict[str, Interval] = {}
    for name, values in before.items():
        others, measure = after.get(name, []), measure_of(name)
        if not values or not others or (measure and not measure.compared):
            continue
        if measure and measure.items == OWN:
            out[name] = unpaired_difference(values, others, interval_of(name))
        elif len(values) == len(others):
            out[name] = paired_difference(values, others)
    return out


def right(verdict: Verdict | None) -> float:
    """1 for a perfect image."""
    return float(verdict is not None and verdict.total is not None and verdict.total >= 1 - 1e-6)


def entropies(texts: Sequence[TextSegment | None]) -> list[float]:
    """Mean -log p per token in nats of each sampled text, under the distribution that it was sampled from.

    Its mean over texts estimates the entropy a token. Greedy texts are not samples of it: call it with sampled ones.

    >>> import torch
    >>> text = TextSegment(context=(), token_ids=(1, 2), log_probs=torch.tensor([-1.0, -2.0]), text="", ended=True)
    >>> entropies([text, None])
    [1.5]
    """
    return [-float(text.log_probs.mean()) for text in texts if text is not None]


def chunks(count: int) -> Iterator[slice]:
    """Slices of at most CHUNK rows.

    >>> [(part.start, part.stop) for part in chunks(130)]
    [(0, 128), (128, 130)]
    """
    for start in range(0, count, CHUNK):
        yield slice(start, min(start + CHUNK, count))
