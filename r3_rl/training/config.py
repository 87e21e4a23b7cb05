"""Arguments of the trainer: transformers' own, TRL's names where the meaning is TRL's, ours prefixed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from r3_rl import ranks
from r3_rl.recipe.branching import BranchSection
from r3_rl.training.from_trl import branch_of


@dataclass
class R3Config(TrainingArguments):
    """What `R3Trainer` is told. One optimiser step is one step of the schedule.

    Source of the names: TRL's GRPOConfig; `image_*` and `refine_*` are ours.
    """

    num_prompts: int = field(default=8, metadata={"help": "Prompts of a step, over all processes."})
    branch: dict[str, int] = field(
        default_factory=lambda: BranchSection().model_dump(),
        metadata={"help": "Children of a node: plan, draft, critique, refinement, as `rollout.branch` of a recipe."},
    )
    num_generations: int | None = field(
        default=None,
        metadata={"help": "TRL's name, instead of branch: plans of a prompt, one draft each, and as many critiques."},
    )
    num_parts: int = field(default=1, metadata={"help": "Parts of the drawing; scorers work on one during the next."})
    num_iterations: int = field(default=1, metadata={"help": "Updates on the same rollouts."})
    reward_weights: list[float] | None = field(default=None, metadata={"help": "Of plain scorers; None is 1 each."})
    beta: float = field(default=0.0, metadata={"help": "KL coefficient of texts."})
    epsilon: float = field(default=0.2, metadata={"help": "Clip range of the text ratio."})
    epsilon_high: float | None = field(default=None, metadata={"help": "Upper clip range; None takes epsilon."})
    scale_rewards: str = field(default="none", metadata={"help": "none, group or batch."})
    image_beta: float = field(default=0.0, metadata={"help": "KL coefficient of denoising steps."})
    image_kl: str = field(default="mean", metadata={"help": "KL of a step, from its mean or its velocity."})
    image_epsilon: float = field(default=0.2, metadata={"help": "Clip range of the image ratio."})
    image_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the generation branch; None takes learning_rate."}
    )
    image_loss_weight: float = field(default=2.0, metadata={"help": "Weight of the image loss."})
    text_loss_weight: float = field(default=1.0, metadata={"help": "Weight of the text loss."})
    schedule: str = field(
        default="tree", metadata={"help": "tree, full, episode, draft_only, critique_only, cotrain, progressive."}
    )
    apart_fraction: float = field(default=0.25, metadata={"help": "Share of the run before joint steps (progressive)."})
    ramp_fraction: float = field(default=0.5, metadata={"help": "Share in which they become the rule (progressive)."})
    gain: str = field(default="paper", metadata={"help": "paper, released or repair."})
    format_mode: str = field(default="gate", metadata={"help": "gate or add."})
    format_weight: float = field(default=0.1, metadata={"help": "Reward of a well-formed text."})
    refine_node_choice: str = field(default="spread_only", metadata={"help": "Which nodes are refined."})
    refine_perfect_ratio: float = field(default=0.15, metadata={"help": "Share of perfect nodes."})
    reason_steps: int = field(default=1, metadata={"help": "Reason steps before each reflect-refine step."})
    refine_depth: int = field(default=1, metadata={"help": "From 2 on, refined images enter the pool."})
    refine_synthetic_fraction: float = field(default=0.0, metadata={"help": "Share of nodes drawn by the world."})
    rounds: int = field(default=1, metadata={"help": "Refinements of a trajectory (schedule full)."})
    token_budget: int = field(default=4096, metadata={"help": "Tokens of a micro-batch."})
    max_zero_variance_steps: int = field(default=20, metadata={"help": "Steps without spread that stop the run."})
    time_budget_s: float | None = field(default=None, metadata={"help": "Seconds after which the run ends."})
    probe_every: int = field(default=10, metadata={"help": "Steps between gradient probes; 0 is never."})
    optimizer_parts: int = field(
        default=0, metadata={"help": "Full weights: parts of the optimiser, one a process; 0 is whole in each."}
    )
    aggregator: str = field(default="sum", metadata={"help": "How the objectives' gradients become one."})

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            # an installed DeepSpeed is asked which device it would take, and warns about what is no news here
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        super().__post_init__()
        self.branch = branch_of(self.branch, self.num_generations)

    @property
    def world_size(self) -> int:
        """Processes, as torch says: with DeepSpeed on a CPU accelerate sees one, and every process would write."""
        return max(ranks.count(), super().world_size)

    @property
    def process_index(self) -> int:
        """Rank, as torch says."""
        return max(ranks.rank(), super().process_index)
