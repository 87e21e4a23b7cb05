"""The node pool of Tree-RL: drawn images that a reflect-refine step can branch from.

A trajectory is cut at its images. Reason steps put groups of scored drafts into the pool; a reflect-refine step draws
one node a group and lets G critiques and refinements branch from that single image.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from r3_rl.types import Prompt, Verdict

WITHIN = 1e-6
"""A weighted panel reaches its best only up to rounding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """A scored image of a prompt."""

    prompt: Prompt
    image: torch.Tensor
    """float32 [3, H, W] in [0, 1]."""
    score: float
    """V of the image, a present score."""
    verdict: Verdict
    depth: int = 0
    """0 for a draft, 1 for a refinement of a draft, ..."""

    @property
    def perfect(self) -> bool:
        """Whether no image could score higher."""
        return self.score >= self.verdict.best - WITHIN


@dataclass(frozen=True, kw_only=True, eq=False)
class NodeGroup:
    """Peers: images of one prompt drawn in one step (or refinements of one image)."""

    nodes: tuple[Node, ...]

    @property
    def spread(self) -> float:
        """Standard deviation of the scores: 0 means that there is nothing to choose between the images."""
        return float(np.std([node.score for node in self.nodes]))

    @property
    def mixed(self) -> bool:
        """Whether some are perfect and some are not."""
        perfect = [node.perfect for node in self.nodes]
        return any(perfect) and not all(perfect)


class NodePool:
    """The last groups, newest preferred. `choice` is one of perfect_ratio, uniform, spread_weighted, spread_only."""

    def __init__(self, *, choice: str, perfect_ratio: float, max_groups: int, max_depth: int = 1) -> None:
        self.choice, self.perfect_ratio, self.max_depth = choice, perfect_ratio, max_depth
        self.groups: deque[NodeGroup] = deque(maxlen=max_groups)

    def add(self, groups: Sequence[NodeGroup]) -> None:
        """Puts scored groups into the pool; nodes too deep to branch from stay out."""
        for group in groups:
            if group.nodes and group.nodes[0].depth < self.max_depth:
                self.groups.append(group)

    def choose(self, count: int, rng: np.random.Generator) -> list[Node]:
        """Draws `count` nodes, no group twice while there are others (then groups serve again); none when no group
        qualifies (`spread_only` before any group is mixed)."""
        groups = list(self.groups)[::-1]
        if self.choice == "spread_only":
            groups = [g for g in groups if g.mixed]
        if not groups:
            return []
        if self.choice == "spread_weighted":
            weights = np.array([g.spread for g in groups]) + 1e-6
            order = rng.choice(len(groups), size=min(count, len(groups)), replace=False, p=weights / weights.sum())
            picked = [groups[i] for i in order]
        else:
            picked = groups[:count]
        while len(picked) < count:
            picked.append(groups[int(rng.integers(len(groups)))])
        return [self._node(group, rng) for group in picked]

    def _node(self, group: NodeGroup, rng: np.random.Generator) -> Node:
        nodes = group.nodes
        if self.choice == "uniform":
            return nodes[int(rng.integers(len(nodes)))]
        perfect = [n for n in nodes if n.perfect]
        wrong = [n for n in nodes if not n.perfect]
        side = perfect if rng.random() < self.perfect_ratio else wrong
        side = side or perfect or wrong  # where one side is empty the other serves
        return side[int(rng.integers(len(side)))]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain data and tensors, newest group last."""
        return {
            "images": [torch.stack([n.image for n in g.nodes]) for g in self.groups],
            "nodes": [
                [
                    {
                        "text": n.prompt.text,
                        "columns": dict(n.prompt.columns),
                        "score": n.score,
                        "depth": n.depth,
                        "scores": dict(n.verdict.scores),
                        "words": n.verdict.words,
                        "best": n.verdict.best,
                    }
                    for n in g.nodes
                ]
                for g in self.groups
            ],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restores what `state` gave."""
        self.groups.clear()
        for images, nodes in zip(state["images"], state["nodes"], strict=True):
            self.groups.append(
                NodeGroup(
                    nodes=tuple(
                        Node(
                            prompt=Prompt(text=n["text"], columns=n["columns"]),
                            image=image,
                            score=n["score"],
                            verdict=Verdict(total=n["score"], scores=n["scores"], words=n["words"], best=n["best"]),
                            depth=n["depth"],
                        )
                        for image, n in zip(images, nodes, strict=True)
                    )
                )
            )
