"""Section `rollout.branch`: how many children each node of a rollout has, and what a step is made of by it."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from pydantic import Field

from r3_rl.recipe.base import Problem, Section

PHASES: dict[str, tuple[str, ...]] = {
    "tree": ("reason", "refine"),
    "full": ("full",),
    "episode": ("episode",),
    "draft_only": ("reason",),
    "critique_only": ("critique",),
    "cotrain": ("reason", "critique"),
    "progressive": ("reason", "critique", "reason", "refine"),
}
"""Schedule -> the kinds of steps that it takes in turn (`progressive`: on average, with its default shares)."""
STAGES: dict[str, tuple[str, ...]] = {
    "reason": ("plan", "draft"),
    "refine": ("critique", "refinement"),
    "critique": ("critique",),
    "full": ("plan", "draft", "critique", "refinement"),
    "episode": ("critique", "refinement"),
    "answer": ("answer",),
}
"""Kind of step -> the stages in which its rollouts branch, from the root down."""


def phases_of(schedule: str, answer_share: float) -> tuple[str, ...]:
    """Return the kinds of steps of a run: those of its schedule, and answers if any are trained.

    >>> phases_of("tree", 0.0), phases_of("tree", 0.25), phases_of("tree", 1.0)
    (('reason', 'refine'), ('reason', 'refine', 'answer'), ('answer',))
    """
    return (*(PHASES[schedule] if answer_share < 1 else ()), *(("answer",) if answer_share > 0 else ()))


class BranchSection(Section):
    """Children of every node. Siblings are compared with each other; a text earns the mean over its children."""

    plan: int = Field(
        8, ge=1, le=4096, description="Plans of a prompt. Without plans a prompt has plan x draft drafts."
    )
    draft: int = Field(
        1,
        ge=1,
        le=4096,
        description="Drafts of a plan, compared with each other. A draft without siblings is compared with those "
        "of the prompt's other plans.",
    )
    critique: int = Field(
        8,
        ge=1,
        le=4096,
        description="Critiques of an image that a step branches from; with schedule `full` of every image.",
    )
    refinement: int = Field(
        1,
        ge=1,
        le=4096,
        description="Refinements by a critique, compared with each other. A refinement without siblings is compared "
        "with those by the other critiques of the image.",
    )
    answer: int = Field(8, ge=1, le=4096, description="Answers to a question, compared with each other.")

    def rollouts(self, phase: str, rounds: int = 1) -> int:
        """Return how many rollouts a step of this kind has below each of its prompts or images.

        Args:
            phase: a name in `STAGES`.
            rounds: of whole trajectories, whose images branch in each.

        >>> BranchSection(plan=4, draft=4, critique=8, refinement=2).rollouts("refine")
        16
        """
        if phase == "full":
            return self.rollouts("reason") * self.rollouts("refine") ** rounds
        return prod(int(getattr(self, stage)) for stage in STAGES[phase])

    def alone(
        self,
        schedule: str,
        *,
        answer_share: float = 0.0,
        texts: bool = True,
        images: bool = True,
        plans: bool = True,
    ) -> Iterator[Problem]:
        """Find the kinds of steps in which nothing that learns has a peer to be compared with.

        Args:
            schedule: a name in `PHASES`.
            answer_share: of the steps that train answers.
            texts: whether the text loss has a weight.
            images: whether the image loss has one.
            plans: whether any are written.

        >>> [problem.path for problem in BranchSection(plan=1).alone("tree")]
        ['plan']
        >>> list(BranchSection(plan=1, draft=4).alone("draft_only"))
        []
        """
        for phase in dict.fromkeys(phases_of(schedule, answer_share)):
            stages, rollouts = STAGES[phase], self.rollouts(phase)
            # the critiques of whole trajectories and of episodes have as many peers as there are rollouts
            texts_of = rollouts if phase in ("full", "episode") else int(getattr(self, stages[0]))
            peers = {"text": texts_of} if texts and (plans or phase != "reason") else {}
            peers |= {"image": rollouts} if images and phase not in ("critique", "answer") else {}
            if max(peers.values(), default=0) < 2:
                counted = " and ".join(f"{getattr(self, stage)} {stage}" for stage in stages)
                learns = f"no {' and no '.join(peers)} has" if peers else "nothing that is trained has"
                step = f"{'an' if phase in ('episode', 'answer') else 'a'} {phase} step"
                yield Problem(stages[0], f"{counted} in {step}: {learns} a peer to be compared with; use 2 or more")
