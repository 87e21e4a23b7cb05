"""The node pool of Tree-RL: drawn images that a reflect-refine step can branch from.

A trajectory is cut at its images. Reason steps put groups of scored drafts into the pool; a reflect-refine step draws
one image a group and lets G critiques and refinements branch from that single image.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

from r3_rl.nodes import Node


def spread(group: Sequence[Node]) -> float:
    """Standard deviation of the scores: 0 means that there is nothing to choose between the images."""
    return float(np.std([node.score or 0.0 for node in group]))


def mixed(group: Sequence[Node]) -> bool:
    """Whether some images are perfect and some are not."""
    perfect = [node.perfect for node in group]
    return any(perfect) and not all(perfect)


class NodePool:
    """The last groups, newest preferred. `choice` is one of perfect_ratio, uniform, spread_weighted, spread_only."""

    def __init__(self, *, choice: str, perfect_ratio: float, max_groups: int, max_depth: int = 1) -> None:
        self.choice, self.perfect_ratio, self.max_depth = choice, perfect_ratio, max_depth
        self.groups: deque[tuple[Node, ...]] = deque(maxlen=max_groups)
        """Scored images of one root each."""

    def add(self, images: Iterable[Node | None]) -> None:
        """Puts images of a turn into the pool, those of a root as one group. Images without a score stay out, and so do
        those that were refined too often to branch from."""
        groups: dict[Node, list[Node]] = {}
        for node in images:
            if node is not None and node.score is not None and node.num_refinements < self.max_depth:
                groups.setdefault(node.root, []).append(node)
        for group in groups.values():
            self.groups.append(tuple(node.given() for node in group))

    def choose(self, count: int, rng: np.random.Generator) -> list[Node]:
        """Draws `count` nodes, no group twice while there are others (then groups serve again); none when no group
        qualifies (`spread_only` before any group is mixed)."""
        groups = list(self.groups)[::-1]
        if self.choice == "spread_only":
            groups = [group for group in groups if mixed(group)]
        if not groups:
            return []
        if self.choice == "spread_weighted":
            weights = np.array([spread(group) for group in groups]) + 1e-6
            order = rng.choice(len(groups), size=min(count, len(groups)), replace=False, p=weights / weights.sum())
            picked = [groups[i] for i in order]
        else:
            picked = groups[:count]
        while len(picked) < count:
            picked.append(groups[int(rng.integers(len(groups)))])
        chosen = []
        for nodes in picked:
            side: Sequence[Node] = nodes
            if self.choice != "uniform":
                perfect, wrong = [n for n in nodes if n.perfect], [n for n in nodes if not n.perfect]
                # where one side is empty the other serves
                side = (perfect if rng.random() < self.perfect_ratio else wrong) or perfect or wrong
            chosen.append(side[int(rng.integers(len(side)))])
        return chosen
