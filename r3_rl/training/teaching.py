"""Supervised steps: right examples instead of rollouts, the flow and next-token losses instead of advantages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from r3_rl import ranks
from r3_rl.errors import RunError
from r3_rl.modalities import TextPiece
from r3_rl.observe.numbers import Numbers, combine
from r3_rl.policy.base import Example, Policy, SupervisedNoise
from r3_rl.policy.routing import routing_of
from r3_rl.recipe.base import default
from r3_rl.recipe.pretraining import PretrainSection
from r3_rl.recipe.supervised import SupervisedSection
from r3_rl.training.batcher import Batcher
from r3_rl.training.parallel import Learner

Examples = Callable[[str, int, int], Sequence[Example]]
"""(task, count, seed) -> right examples of a key of `algorithm.supervised`; equal arguments give equal ones."""
STAGE_OF = {
    "text_to_image": "draft",
    "edit": "refinement",
    "critique": "critique",
    "question": "answer",
    "plan": "plan",
}
"""The stage that does what a key of `algorithm.supervised` has examples of."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Makes the examples of a step and accumulates their gradient."""

    examples: Examples
    counts: SupervisedSection
    text_weight: float
    image_weight: float
    seed: int
    """Of the run."""

    def step(self, number: int, policy: Policy, learner: Learner, batcher: Batcher) -> Numbers:
        """Leave the gradient of step `number` in what the learner steps, added up over the processes.

        Losses are means over the text tokens and over the latent dimensions of all processes' examples.

        Returns:
            Losses of this process's share.

        Raises:
            RunError: a loss is not finite.
        """
        noise = SupervisedNoise(
            times_per_image=default(PretrainSection, "times_per_image"),
            time_mean=default(PretrainSection, "time_mean"),
            soften_below=default(PretrainSection, "soften_below"),
        )
        mine = self._share(number, staged=routing_of(policy.module) is not None)
        sizes = ranks.total(*map(float, policy.supervised_sizes(mine, noise)))
        num_flow, num_text = (max(size, 1.0) for size in sizes)
        generator = torch.Generator().manual_seed(self._seed(number) * ranks.count() + ranks.rank())
        found = [Numbers({"loss": 0.0})]
        size = self.counts.micro_batch
        count = max(ranks.everyone(-(-len(mine) // size)))
        with learner.collecting(count, batcher):
            for start in range(0, count * size, size):
                if start >= len(mine):  # as many micro-batches in every process
                    learner.idle()
                    continue
                sums = policy.supervised(mine[start : start + size], noise, generator)
                flow, text = sums.flow / num_flow, sums.text / num_text
                loss = self.image_weight * flow + self.text_weight * text
                if not torch.isfinite(loss):
                    raise RunError("the loss is not finite", hint="lower training.learning_rate")
                learner.backward(loss)
                parts = {"image/loss": float(flow.detach())} if sums.num_flow else {}
                parts |= {"text/loss": float(text.detach())} if sums.num_text else {}
                found.append(Numbers({"loss": float(loss.detach()), **parts}))
        if not learner.in_parts:
            ranks.add_gradients(list(learner.names))
        return combine(found, over="batches")

    def _share(self, number: int, *, staged: bool) -> list[Example]:
        """This process's examples of a step: every so many-th of those that one process alone would have. staged: each
        says its stage; a plan and its image stay in one process, or one would have all texts and another all images."""
        made = [
            (example, STAGE_OF[task])
            for task, count in self.counts.counts()
            if count
            for example in self.examples(task, count, self._seed(number))
        ]
        mine = made[ranks.rank() :: ranks.count()]
        return [part for example, stage in mine for part in (by_stage(example, stage) if staged else [example])]

    def _seed(self, number: int) -> int:
        return self.seed * 1_000_003 + number


def by_stage(example: Example, stage: str) -> list[Example]:
    """An example as the stages meet it: a plan and its image are learned by two adapters, and the one that draws reads
    the plan too. Losses are sums, so two examples weigh what one did.

    >>> drawn = Example(context=(TextPiece(text="a dog"),), answer="a dog in the middle", image=torch.zeros(3, 4, 4))
    >>> [(part.task, len(part.context)) for part in by_stage(drawn, "draft")]
    [('plan', 1), ('draft', 2)]
    """
    if example.answer is None or example.image is None:
        return [replace(example, task=stage)]
    plan = replace(example, image=None, task="plan")
    context = (*example.context, TextPiece(text=example.answer))
    return [plan, replace(example, context=context, answer=None, task=stage)]
