"""The recipe: every setting of a run, checked before anything loads.

Strict (no conversions), frozen, unknown keys are errors, no torch. The defaults are the ones vetted for the embedded
model, so a recipe says only what differs.

>>> from r3_rl.recipe import Recipe
>>> recipe = Recipe.model_validate({"version": 1, "rewards": [{"scorer": "shapes"}]})
>>> recipe.rollout.num_prompts, recipe.algorithm.schedule
(8, 'tree')
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from r3_rl.recipe.base import Problem, Section, section
from r3_rl.recipe.evaluating import EvalSection
from r3_rl.recipe.geometry import geometry, misfit
from r3_rl.recipe.guarding import GuardsSection
from r3_rl.recipe.learning import MOST_SCORERS, AlgorithmSection, RewardSection
from r3_rl.recipe.pretraining import PretrainSection
from r3_rl.recipe.running import BalanceSection, LoraSection, ObserveSection, TrainingSection, zero_stage
from r3_rl.recipe.sampling import EMBEDDED, DataSection, ModelSection, RolloutSection

__all__ = ["Problem", "Recipe", "RewardSection", "Section", "geometry", "misfit"]


MOST_ROLLOUTS = 16384
"""Of one step: more are a mistake, since children of children multiply."""


class Recipe(Section):
    """Everything a run is made of."""

    version: Literal[1] = Field(description="Version of the recipe's layout.")
    model: ModelSection = section("The policy.")
    data: DataSection = section("The prompts.")
    rollout: RolloutSection = section("How the policy writes and draws.")
    rewards: tuple[RewardSection, ...] = Field(
        (), strict=False, max_length=MOST_SCORERS, description="The panel that is trained on."
    )
    eval_rewards: tuple[RewardSection, ...] = Field(
        (),
        strict=False,
        max_length=MOST_SCORERS,
        description="Held-out scorers, reported beside the panel and never trained on.",
    )
    algorithm: AlgorithmSection = section("Credit and losses.")
    balance: BalanceSection = section("Understanding and generation as two objectives.")
    training: TrainingSection = section("The optimiser and the run.")
    lora: LoraSection = section("Low-rank adapters.")
    observe: ObserveSection = section("What a run leaves behind.")
    eval: EvalSection = section(
        "Benches of `r3 eval` that a run is measured by before and after training; their tables and samples are in "
        "`eval/` of the run. Each is described in [evaluation.md](evaluation.md)."
    )
    guards: GuardsSection = section(
        "What is looked for while a run goes on: `warn` says it once, live and in the report; `stop` also saves a "
        "checkpoint and ends the run with exit code 3; `off` does not look. Thresholds: [guards.md](guards.md)."
    )
    pretrain: PretrainSection | None = Field(
        None, description="Supervised pretraining; such a recipe is run by `r3 pretrain` and needs no rewards."
    )

    def problems(self) -> Iterator[Problem]:
        yield from self._panel_problems()
        yield from self._step_problems()
        yield from self._adapter_problems()
        yield from self._weights_problems()
        kind = self.model.kind
        if kind != EMBEDDED and self.model.path is None and self.pretrain is None:
            yield Problem("model.path", f"kind '{kind}' ships no weights; give the folder of a downloaded checkpoint")
        if kind == EMBEDDED and self.rollout.protocol != "compact":
            yield Problem("rollout.protocol", "the embedded model knows only its own words and the protocol 'compact'")
        if self.algorithm.tree.synthetic_fraction > 0 and not self.data.world:
            yield Problem("algorithm.tree.synthetic_fraction", "only a world can draw nodes itself; set it to 0")
        if self.algorithm.answer_share > 0 and not self.data.world and self.data.questions is None:
            yield Problem("algorithm.answer_share", "nobody asks: name a file in data.questions, or set it to 0")
        if self.algorithm.answer_own_share > 0 and not self.data.world:
            yield Problem("algorithm.answer_own_share", "only a world can say what an image shows; set it to 0")
        if self.data.questions is not None and self.algorithm.answer_share == 0:
            yield Problem("data.questions", "no step asks them; set algorithm.answer_share above 0, or drop the file")
        if self.algorithm.supervised is not None:
            yield from self._supervised_problems()
        if self.balance.routing != "shared" and self.training.parallel.kind == "fsdp2":
            yield Problem("balance.routing", "routed adapters cannot be sharded; use 'shared', or another engine")
        if self.lora.enabled and zero_stage(self.training.deepspeed) == 3:
            yield Problem(
                "training.deepspeed",
                "ZeRO 3 shards full weights; use 2, or training.parallel.kind 'fsdp2', which shards an adapter's base",
            )
        if self.eval.keep_best and not self.lora.enabled and self.training.shards_weights:
            yield Problem(
                "eval.keep_best", "full weights in shards are not kept step by step; use lora, or leave it out"
            )
        if self.pretrain is not None and self.eval.benches:
            yield Problem("eval.benches", "only `r3 train` measures them; leave them out and run `r3 eval` afterwards")
        if self.pretrain is not None and not self.data.world:
            yield Problem(
                "data.kind", "pretraining needs a world, which makes its own examples; a file has prompts alone"
            )

    def _supervised_problems(self) -> Iterator[Problem]:
        if not self.data.world:
            yield Problem("algorithm.supervised", "only a world can say what is right; leave it out")
        if self.balance.aggregator != "sum":
            yield Problem("balance.aggregator", "supervised steps add their gradients up; use 'sum'")
        if self.balance.image_gradients != "all":
            yield Problem(
                "balance.image_gradients",
                "supervised steps learn words and images in one gradient; use 'all'",
            )

    def _panel_problems(self) -> Iterator[Problem]:
        if not self.rewards and self.pretrain is None:
            yield Problem("rewards", "no scorer to learn from; name one of those that `r3 rewards ls` lists")
        if self.rewards and all(reward.weight == 0 for reward in self.rewards):
            yield Problem("rewards.0.weight", "every scorer weighs 0: nothing to learn from; set one weight above 0")
        for panel in ("rewards", "eval_rewards"):
            yield from _twice(panel, getattr(self, panel))

    def _step_problems(self) -> Iterator[Problem]:
        """Of what a step rolls out, and where a run is saved."""
        if self.training.save_steps % self.algorithm.num_iterations:
            yield Problem(
                "training.save_steps",
                f"{self.training.save_steps} falls between the {self.algorithm.num_iterations} updates on the same "
                f"rollouts; use {_nearest(self.training.save_steps, self.algorithm.num_iterations)}",
            )
        if self.rewards:
            for problem in self.rollout.branch.alone(
                self.algorithm.schedule,
                answer_share=self.algorithm.answer_share,
                texts=self.algorithm.text_loss_weight > 0,
                images=self.algorithm.image_loss_weight > 0,
                plans=self.rollout.plan.enabled,
            ):
                yield Problem(f"rollout.branch.{problem.path}", problem.message)
        if self.algorithm.schedule == "full":
            rollouts = self.rollout.num_prompts * self.rollout.branch.rollouts("full", self.rollout.rounds)
            if rollouts > MOST_ROLLOUTS:
                yield Problem(
                    "rollout.branch.critique",
                    f"schedule 'full' branches at every image: {rollouts} rollouts a step, more than {MOST_ROLLOUTS}; "
                    "use 1 critique and 1 refinement",
                )

    def _adapter_problems(self) -> Iterator[Problem]:
        """Of adapters on one branch alone, whose other ability learns nothing."""
        if not self.lora.enabled:
            if self.balance.routing != "shared":
                yield Problem("balance.routing", "tasks are told apart by their adapters; set lora.enabled to true")
            return
        if self.lora.start is not None and self.balance.routing != "shared":
            yield Problem("lora.start", "adapters that are routed by task begin anew; set balance.routing to 'shared'")
        if self.lora.branches == "generation" and self.algorithm.text_loss_weight > 0:
            yield Problem(
                "algorithm.text_loss_weight",
                "adapters on the generation branch alone learn nothing from texts; set it to 0",
            )
        if self.lora.branches == "understanding" and self.training.image_learning_rate is not None:
            yield Problem(
                "training.image_learning_rate",
                "lora.branches 'understanding' trains nothing that draws; set it to null",
            )
        if self.lora.branches == "understanding" and self.balance.image_gradients != "all":
            yield Problem(
                "balance.image_gradients", "lora.branches 'understanding' trains nothing that draws; use 'all'"
            )

    def _weights_problems(self) -> Iterator[Problem]:
        """Of the types in which weights are trained, and of shards."""
        halved = self.training.trains_in_bfloat16
        shards = self.training.deepspeed is None and self.training.parallel.kind in ("auto", "fsdp2")
        if (
            not self.lora.enabled
            and self.pretrain is None
            and not shards
            and self.model.dtype != ("bfloat16" if halved else "float32")
        ):
            yield Problem(
                "model.dtype",
                "training.deepspeed.bf16 trains weights in bfloat16; set it to bfloat16"
                if halved
                else "full weights are trained in float32: smaller steps vanish in bfloat16 "
                "(training.parallel.kind fsdp2 keeps float32 master weights)",
            )
        if self.lora.enabled and halved:
            yield Problem("training.deepspeed", "adapters are trained in float32; leave bf16 out")


def _nearest(number: int, divisor: int) -> str:
    """The multiples around a number, as words."""
    below = number // divisor * divisor
    return " or ".join(str(multiple) for multiple in (below, below + divisor) if multiple)


def _twice(panel: str, rewards: tuple[RewardSection, ...]) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, reward in enumerate(rewards):
        name = reward.name or reward.scorer
        if name in seen:
            yield Problem(f"{panel}.{index}", f"'{name}' stands here twice; tell them apart by 'name'")
        seen.add(name)
