"""Section `algorithm.supervised`: steps that learn from right examples instead of rollouts and rewards."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from r3_rl.recipe.base import Problem, Section

MOST = 10**6
TASKS = ("text_to_image", "edit", "critique", "question", "plan")


class SupervisedSection(Section):
    """Right examples of each task in a step, of all processes together. At least one task is above 0."""

    text_to_image: int = Field(0, ge=0, le=MOST, description="Prompt -> plan -> image.")
    edit: int = Field(0, ge=0, le=MOST, description="Image and instruction -> image.")
    critique: int = Field(0, ge=0, le=MOST, description="Image and prompt -> listing and instruction.")
    question: int = Field(0, ge=0, le=MOST, description="Image and question -> listing and answer.")
    plan: int = Field(0, ge=0, le=MOST, description="Prompt -> plan, without the image.")
    micro_batch: int = Field(32, ge=1, le=MOST, description="Examples of one pass.")

    def problems(self) -> Iterator[Problem]:
        if not any(count for _, count in self.counts()):
            yield Problem("text_to_image", "a step without any example learns nothing; set one task above 0")

    def counts(self) -> list[tuple[str, int]]:
        """Task and number of examples, in the order in which a step has them.

        >>> SupervisedSection(critique=4).counts()[2]
        ('critique', 4)
        """
        return [(task, getattr(self, task)) for task in TASKS]

    @property
    def draws(self) -> bool:
        """Whether a step has images to learn."""
        return bool(self.text_to_image or self.edit)

    @property
    def writes(self) -> bool:
        """Whether a step has texts to learn."""
        return bool(self.text_to_image or self.critique or self.question or self.plan)

    def words(self) -> str:
        """Say what a step is made of.

        >>> SupervisedSection(text_to_image=96, critique=32).words()
        '96 text_to_image + 32 critique = 128 right examples a step'
        """
        named = [f"{count} {task}" for task, count in self.counts() if count]
        return f"{' + '.join(named)} = {sum(count for _, count in self.counts())} right examples a step"
