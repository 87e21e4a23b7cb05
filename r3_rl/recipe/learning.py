"""Sections `rewards` and `algorithm`: what the policy learns from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from r3_rl.recipe.base import MOST_STEPS, Problem, Section, Share, section
from r3_rl.recipe.branching import STAGES, phases_of
from r3_rl.recipe.plateau import PLATEAU_GAIN, PLATEAU_STEPS, RESTART_RATE
from r3_rl.recipe.supervised import SupervisedSection

MOST_SCORERS = 32
"""Scorers in a panel at most: each is looked up, and asked about every image."""


class RewardSection(Section):
    """One scorer of the panel."""

    scorer: str = Field(
        min_length=1, description="Name of an installed scorer, `package.module:name`, or `./file.py:name`."
    )
    weight: float = Field(1.0, ge=-1e6, le=1e6, description="Share of this scorer in the panel's sum.")
    name: str | None = Field(None, min_length=1, description="Name in metrics and reports; null takes the scorer's.")
    params: dict[str, Any] = Field({}, description="Keywords handed to the scorer.")
    timeout_s: float = Field(
        300.0, gt=0, description="Seconds that one call may run; then the scores of its samples are missing."
    )
    isolate: bool = Field(
        False,
        description="Run the scorer in its own process: whatever it does there, a crash or a hang included, costs its "
        "scores and nothing else.",
    )
    memory_gb: float | None = Field(
        None, gt=0, description="Memory of its process in 10^9 bytes, past which it is ended; asks for `isolate: true`."
    )

    def problems(self) -> Iterator[Problem]:
        if self.memory_gb is not None and not self.isolate:
            yield Problem("memory_gb", "limits the scorer's own process, and it has none; set isolate: true")


class TreeSection(Section):
    """How the reflect-refine step picks the images it branches from."""

    node_choice: Literal["perfect_ratio", "uniform", "spread_weighted", "spread_only"] = Field(
        "spread_only",
        description="`spread_only`: only images whose group has unlike scores, where there is something to learn.",
    )
    perfect_ratio: Share = Field(
        0.15,
        description="Chance of a perfect image (all choices but `uniform`), and share of right ones among those that a "
        "world draws.",
    )
    reason_steps: int = Field(
        1,
        ge=1,
        le=1000,
        description="Reason steps before each reflect-refine step; more of them where drafts are the weak part.",
    )
    reflect_steps: int = Field(
        1,
        ge=1,
        le=1000,
        description="Reflect-refine steps after these, or critique steps of `cotrain`; more of them where the critic "
        "is the weak part.",
    )
    depth: int = Field(1, ge=1, le=1000, description="From 2 on, refined images enter the pool too.")
    synthetic_fraction: Share = Field(
        0.0,
        description="Share of nodes drawn by the world, not the policy: `perfect_ratio` of them right, of the others "
        "half one edit away from right.",
    )


class ProgressiveSection(Section):
    """Drafts and critiques apart first; then the critique of a step is more and more often one with its refinement."""

    apart_fraction: Share = Field(0.25, description="First share of the run, in which drafts and critiques take turns.")
    ramp_fraction: Share = Field(0.5, description="Following share, in which reflect-refine steps become the rule.")
    plateau_steps: int | None = PLATEAU_STEPS
    plateau_gain: float = PLATEAU_GAIN
    restart_rate: bool = RESTART_RATE


class AlgorithmSection(Section):
    """Credit and losses."""

    schedule: Literal["tree", "full", "episode", "draft_only", "critique_only", "cotrain", "progressive"] = Field(
        "tree",
        description="`tree` trains drafts and refinements in turn, `full` whole trajectories, `episode` several rounds "
        "from one draft with one advantage a trajectory, `progressive` begins as `cotrain` and becomes `tree`; others "
        "are baselines.",
    )
    tree: TreeSection = section("The node pool of schedule `tree`.")
    progressive: ProgressiveSection = section("When schedule `progressive` joins drawing and understanding.")
    supervised: SupervisedSection | None = Field(
        None,
        description="Steps that learn from the world's right examples, without rollouts and rewards, in place of those "
        "of `schedule`: the supervised baseline, or a cold start. Null learns from rewards.",
    )
    answer_share: Share = Field(
        0.0,
        description="Share of the steps that train answers to questions about images, spread evenly between the "
        "schedule's own steps; 1 trains nothing else. The world asks, or the file `data.questions`. A right answer "
        "earns 1.",
    )
    answer_own_share: Share = Field(
        0.0,
        description="Share of these questions that are about images that the policy drew in the last steps; the world "
        "asks them, and its inspector answers.",
    )
    frozen_stages: tuple[Literal["plan", "draft", "critique", "refinement", "answer"], ...] = Field(
        (),
        strict=False,
        description="Stages that are rolled out and rewarded, and do not learn: `[critique]` is a frozen critic. "
        "`supervised` steps roll nothing out and teach what they name.",
    )
    gain: Literal["paper", "released", "repair"] = Field("paper", description="What a refinement earns over its draft.")
    format_mode: Literal["gate", "add"] = Field(
        "gate", description="A malformed text earns nothing (`gate`) or only misses format_weight (`add`)."
    )
    format_weight: float = Field(0.1, ge=0, le=1000, description="Reward of a well-formed text.")
    decision_weight: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="What a critique earns beside its gain for the right decision: a stop at a perfect image, an edit "
        "at another. An edit that helps seldom is otherwise worth little more than a stop, and a critic stops. Of "
        "schedules whose critiques earn a gain (`tree`, `full`, `progressive`); `critique_only` and `cotrain` reward "
        "the decision alone, `episode` the last image alone.",
    )
    scale_rewards: Literal["none", "group", "batch"] = Field(
        "none",
        description="What the advantage is divided by: nothing, the standard deviation of the group or of the batch.",
    )
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = Field(
        "sum_then_normalize",
        description="Several scorers: weigh and sum, then compare with the peers, or the other way round "
        "(schedule `draft_only`, since a gain is a difference of sums).",
    )
    max_failed_fraction: Share = Field(0.25, description="A step with a larger share of missing scores stops the run.")
    max_zero_variance_steps: int = Field(
        20, ge=1, le=MOST_STEPS, description="So many steps in a row without any spread in any group stop the run."
    )
    text_loss: str = Field(
        "clip",
        min_length=1,
        description="Surrogate of texts: `clip` (PPO, GRPO), `gspo` (one ratio a text), `cispo` (every token keeps its "
        "gradient), or your own as `package.module:name` or `./file.py:name`.",
    )
    image_loss: str = Field("clip", min_length=1, description="The same of denoising steps or image tokens.")
    epsilon: float = Field(
        0.2, gt=0, lt=1, description="Clip range of the text ratio, below 1 (and above, see epsilon_high)."
    )
    epsilon_high: float | None = Field(
        None, gt=0, description="Clip range of the text ratio above 1; null takes epsilon."
    )
    image_epsilon: float = Field(0.2, gt=0, lt=1, description="Clip range of the image ratio.")
    beta: float = Field(
        0.0, ge=0, le=1000, description="KL coefficient of texts; above 0 costs a pass of the reference policy."
    )
    image_beta: float = Field(0.0, ge=0, le=1000, description="KL coefficient of denoising steps.")
    image_kl: Literal["mean", "velocity"] = Field(
        "mean", description="KL of a step from the distance of the means (over the variance) or of the velocities."
    )
    text_loss_weight: float = Field(1.0, ge=0, le=1e6, description="Weight of the text loss (plan, critique).")
    image_loss_weight: float = Field(2.0, ge=0, le=1e6, description="Weight of the image loss (draft, refinement).")
    num_iterations: int = Field(1, ge=1, le=1000, description="Updates on the same rollouts.")

    def problems(self) -> Iterator[Problem]:
        if self.text_loss_weight == 0 and self.image_loss_weight == 0:
            yield Problem("image_loss_weight", "both losses weigh 0: nothing would be learned; set one above 0")
        if self.multi_objective_aggregation == "normalize_then_sum" and self.schedule != "draft_only":
            yield Problem(
                "multi_objective_aggregation",
                f"a gain is a difference of sums, so schedule '{self.schedule}' needs 'sum_then_normalize'",
            )
        if self.schedule == "critique_only" and self.text_loss_weight == 0:
            yield Problem("text_loss_weight", "schedule 'critique_only' learns from texts alone; set it above 0")
        phases = phases_of(self.schedule, self.answer_share)
        if not {stage for phase in phases for stage in STAGES[phase]} - set(self.frozen_stages):
            yield Problem("frozen_stages", f"schedule '{self.schedule}' trains no other stage; leave one out")
        if self.answer_own_share > 0 and not 0 < self.answer_share < 1:
            yield Problem(
                "answer_own_share",
                "own images come from steps that draw: set answer_share between 0 and 1, or this to 0",
            )
        if self.answer_share > 0 and self.text_loss_weight == 0:
            yield Problem("text_loss_weight", "answers are texts; set it above 0, or answer_share to 0")
        if self.supervised is not None:
            yield from self._supervised_problems(self.supervised)

    def _supervised_problems(self, taught: SupervisedSection) -> Iterator[Problem]:
        if self.answer_share:
            yield Problem("answer_share", "supervised steps have no rollouts of a stage; leave it out")
        writes, draws = taught.writes and self.text_loss_weight, taught.draws and self.image_loss_weight
        if not writes and not draws:
            yield Problem("supervised", "its examples are all of the loss that weighs 0; set that above 0")
