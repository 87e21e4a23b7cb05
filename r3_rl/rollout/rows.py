"""Rows of a turn: where their random numbers come from, in which batches they are drawn, and how they are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from r3_rl.modalities import DrawnSegment, TextSegment
from r3_rl.nodes import Node
from r3_rl.scoring.batch import ScoreBatch


def row_seeds(seed: int, stage: int, count: int) -> list[int]:
    """Seeds of rows, far apart whatever the run's seed; `stage` keeps plan, draft, critique and refinement apart.

    A row's seed does not depend on how many rows follow it.

    >>> row_seeds(0, 1, 3)[:2] == row_seeds(0, 1, 2)
    True
    """
    return [int(x) >> 2 for x in np.random.SeedSequence((seed, stage)).generate_state(count, np.uint64)]


def round_seed(seed: int, number: int) -> int:
    """The seed of a round of a step, away from those of the next steps. Round 0 is the draft: it has the step's own."""
    return seed + 100_003 * number


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The batches in which images are drawn: scorers may work on one while the next is drawn.

    >>> Parts(count=2).of([0, 0, 1, 1, 2, 2])
    [[0, 1, 2, 3], [4, 5]]
    >>> Parts(count=2, whole_groups=False).of([0, 0, 1, 1, 2, 2])
    [[0, 1, 2], [3, 4, 5]]
    """

    count: int = 1
    """At most so many."""
    whole_groups: bool = True
    """Peers are drawn in one batch."""

    def of(self, groups: Sequence[int]) -> list[list[int]]:
        """The places of rows, batch by batch; peers have one number in `groups`."""
        keys = groups if self.whole_groups else range(len(groups))
        order = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        parts: dict[int, list[int]] = {}
        for place, key in enumerate(keys):
            parts.setdefault(order[key] * self.count // len(order), []).append(place)
        return [parts[number] for number in sorted(parts)]


def score_batch(images: Sequence[Node]) -> ScoreBatch:
    """What scorers are asked about images of a stage: each with the text that led to it and the image that it was
    refined from; peers, which they may compare, are those of a root."""
    led = [node.parent.sample if node.parent is not None else None for node in images]
    texts = [text.text if isinstance(text, TextSegment) else "" for text in led]
    before = [node.above.above for node in images if node.above.critique is not None]
    shown = _shown(images) | {f"draft_{argument}": values for argument, values in _shown(before).items()}
    return ScoreBatch(
        prompts=[node.prompt for node in images],
        images=shown.pop("images", None),
        texts=texts,
        token_ids=[text.token_ids if isinstance(text, TextSegment) else () for text in led],
        draft_images=shown.pop("draft_images", None),
        critiques=texts if before else None,
        groups=[node.root.id.row for node in images],
        drawn=shown,
    )


def _shown(nodes: Sequence[Node]) -> dict[str, list[Any]]:
    """What was drawn, under the argument that scorers take it as."""
    shown: dict[str, list[Any]] = {}
    for drawn in (node.sample for node in nodes if isinstance(node.sample, DrawnSegment)):
        shown.setdefault(drawn.argument, []).append(drawn.scored())
    return shown
