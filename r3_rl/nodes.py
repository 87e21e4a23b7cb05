"""A rollout as a tree: prompts and given images are its roots, each text and image that the policy makes is a node.

A turn (what the policy rolls out between two updates) has R rows, numbered over all processes. A root covers as many
neighbouring rows as it has rollouts, its children share them out, and so on down: with two plans a prompt and two
images a plan, a root has rows 0 to 3, its plans 0-1 and 2-3, its images one row each. A node is named by the first row
that goes through it and by its depth, and everything random about it follows from that name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from r3_rl.modalities import DrawnSegment, ImageSegment, Piece, Segment, TextSegment, still
from r3_rl.types import Critique, Prompt, Round, Trajectory, Verdict

if TYPE_CHECKING:
    import torch

WITHIN = 1e-6
"""A weighted panel reaches its best only up to rounding."""


@dataclass(frozen=True, kw_only=True, order=True)
class NodeId:
    """Where a node stands among those of its turn.

    >>> NodeId(row=4, depth=1) < NodeId(row=4, depth=2) < NodeId(row=5, depth=1)
    True
    """

    row: int
    """The first row that goes through the node, over all processes; its seeds follow from it."""
    depth: int
    """0 for what the turn starts from, one more for each stage since."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """A prompt, a given image, or a text or image that the policy made."""

    id: NodeId
    prompt: Prompt
    stage: str = "given"
    """`given` for a root, else the stage that made it: plan, draft, critique, refinement."""
    num_rows: int = 1
    """Rows that go through the node."""
    parent: Node | None = None
    """What it continues; None for a root."""
    sample: Segment | None = None
    """What the policy wrote or drew; `still` for a given image, None for a prompt."""
    critique: Critique | None = None
    """How the text of a critique was read."""
    well_formed: bool = True
    """Whether a text has the form that was asked for."""
    verdict: Verdict | None = None
    """What the panel said about an image."""
    num_refinements: int = 0
    """Of an image: refinements since the draft, those of earlier turns included."""

    @property
    def root(self) -> Node:
        """What the turn started from."""
        return self if self.parent is None else self.parent.root

    @property
    def way(self) -> list[Node]:
        """The nodes from the root to this one, both included."""
        return [self] if self.parent is None else [*self.parent.way, self]

    @property
    def above(self) -> Node:
        """What it continues, of a node that is no root."""
        assert self.parent is not None, "a root"
        return self.parent

    @property
    def group(self) -> Node:
        """The node whose children, or whose descendants of this stage, are its peers, which an advantage compares: its
        parent if it has siblings, else its root."""
        return self.parent if self.parent is not None and self.parent.num_rows > self.num_rows else self.root

    @property
    def image(self) -> torch.Tensor:
        """float32 [3, H, W] in [0, 1], of an image."""
        assert isinstance(self.sample, ImageSegment), self.stage
        return self.sample.image

    @cached_property
    def looked_at(self) -> Piece:
        """What was drawn as something to look at; one piece, whoever asks, so that its key is made once."""
        assert self.sample is not None, self.stage
        return self.sample.piece("look")

    @cached_property
    def edited(self) -> Piece:
        """What was drawn as something to redraw."""
        assert self.sample is not None, self.stage
        return self.sample.piece("edit")

    def given(self) -> Node:
        """What was drawn and what is known of it, without the way to it: a root to be."""
        assert isinstance(self.sample, DrawnSegment), self.stage
        return Node(
            id=NodeId(row=0, depth=0),
            prompt=self.prompt,
            sample=self.sample.given(),
            verdict=self.verdict,
            num_refinements=self.num_refinements,
        )

    @property
    def score(self) -> float | None:
        """The panel's total of an image; None where it is missing."""
        return self.verdict.total if self.verdict else None

    @property
    def perfect(self) -> bool:
        """Whether no image could score higher."""
        return self.verdict is not None and self.score is not None and self.score >= self.verdict.best - WITHIN

    def children(self, stage: str, count: int) -> list[Node]:
        """Return `count` nodes below this one, which share out its rows, before anything is made of them.

        >>> (root,) = prompt_roots([Prompt(text="a cross")], num_rows=4)
        >>> [(plan.id.row, plan.num_rows) for plan in root.children("plan", 2)]
        [(0, 2), (2, 2)]
        """
        assert self.num_rows % count == 0, f"{count} children of {self.num_rows} rows"
        each = self.num_rows // count
        return [
            Node(
                id=NodeId(row=self.id.row + i * each, depth=self.id.depth + 1),
                prompt=self.prompt,
                stage=stage,
                num_rows=each,
                parent=self,
                num_refinements=self.num_refinements + (stage == "refinement"),
            )
            for i in range(count)
        ]


def prompt_roots(prompts: Sequence[Prompt], *, num_rows: int = 1, first_row: int = 0) -> list[Node]:
    """A root a prompt, each of `num_rows` rows; first_row: rows that the processes before this one have.

    >>> [root.id.row for root in prompt_roots([Prompt(text="a"), Prompt(text="b")], num_rows=4)]
    [0, 4]
    """
    return [
        Node(id=NodeId(row=first_row + i * num_rows, depth=0), prompt=prompt, num_rows=num_rows)
        for i, prompt in enumerate(prompts)
    ]


def given_image(
    prompt: Prompt, image: torch.Tensor, *, verdict: Verdict | None = None, num_refinements: int = 0
) -> Node:
    """An image float32 [3, H, W] in [0, 1] that a user, a world or an earlier turn gives."""
    return Node(
        id=NodeId(row=0, depth=0), prompt=prompt, sample=still(image), verdict=verdict, num_refinements=num_refinements
    )


def given_critique(image: Node, instruction: str) -> Node:
    """An edit that somebody else asks for, below an image."""
    import torch

    said = TextSegment(context=(), token_ids=(), log_probs=torch.zeros(0), text=instruction, ended=True)
    critique = Critique(segment=said, well_formed=True, stop=False, instruction=instruction)
    (node,) = image.children("critique", 1)
    return replace(node, sample=said, critique=critique)


def always_edits(critique: Node) -> Node:
    """The critique with its words taken as an instruction where it has none: for checks and rehearsals, in which a
    refinement is drawn whatever the policy thinks of the image."""
    said = critique.critique
    assert said is not None, critique.stage
    return replace(critique, critique=replace(said, instruction=said.instruction or said.segment.text))


def numbered(nodes: Sequence[Node]) -> list[int]:
    """0, 1, ... in the order in which the nodes come first: equal numbers for equal nodes."""
    order = {node: number for number, node in enumerate(dict.fromkeys(nodes))}
    return [order[node] for node in nodes]


def image_roots(images: Sequence[Node], *, num_rows: int = 1, first_row: int = 0) -> list[Node]:
    """Given images as roots of a turn, each of `num_rows` rows."""
    return [
        replace(node, id=NodeId(row=first_row + i * num_rows, depth=0), num_rows=num_rows)
        for i, node in enumerate(images)
    ]


def trajectory(leaf: Node) -> Trajectory:
    """The way from the root to a node: its images, each with the plan or the critique that led to it."""
    rounds: list[Round] = []
    text: Node | None = None
    for node in leaf.way:
        if isinstance(node.sample, ImageSegment):
            said = text.critique if text else None
            plan = text.sample if text and isinstance(text.sample, TextSegment) and said is None else None
            rounds.append(Round(image=node.sample, plan=plan, critique=said, verdict=node.verdict))
            text = None
        elif node.sample is not None:
            text = node
    return Trajectory(prompt=leaf.prompt, rounds=tuple(rounds), last_critique=text.critique if text else None)
