"""Sections `rewards`, `algorithm`, `balance`, `training`, `lora` and `observe`: how the policy learns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from r3_rl import registered
from r3_rl.recipe.base import Problem, Section, Share, section
from r3_rl.recipe.branching import STAGES, phases_of
from r3_rl.recipe.plateau import PLATEAU_GAIN, PLATEAU_STEPS, RESTART_RATE

ZERO_STAGES = (1, 2)
"""Of DeepSpeed's ZeRO, those that leave the weights whole in every process."""
WHY_NOT = (
    "use 1 or 2, or training.parallel.kind 'fsdp2': stage 3 gathers weights in every pass of the network, and the "
    "processes' passes are unlike"
)


MOST_STEPS = 10**9
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
    perfect_ratio: Share = Field(0.15, description="Chance of a perfect image (node_choice `perfect_ratio`).")
    reason_steps: int = Field(
        1,
        ge=1,
        le=1000,
        description="Reason steps before each reflect-refine step; more of them where drafts are the weak part.",
    )
    depth: int = Field(1, ge=1, le=1000, description="From 2 on, refined images enter the pool too.")
    synthetic_fraction: Share = Field(0.0, description="Share of nodes drawn by the world, not the policy.")


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
        description="Stages that are rolled out and rewarded, and do not learn: `[critique]` is a frozen critic.",
    )
    gain: Literal["paper", "released", "repair"] = Field("paper", description="What a refinement earns over its draft.")
    format_mode: Literal["gate", "add"] = Field(
        "gate", description="A malformed text earns nothing (`gate`) or only misses format_weight (`add`)."
    )
    format_weight: float = Field(0.1, ge=0, le=1000, description="Reward of a well-formed text.")
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


MOST_WARM_UP = 100
"""Steps of warm-up that are never too many: short tries of a recipe end within them."""


class BalanceSection(Section):
    """Understanding and generation as two objectives."""

    objectives: Literal["kind", "stage"] = Field(
        "kind",
        description="Whose gradients are told apart: those of texts and of images (`kind`), or those of each stage.",
    )
    aggregator: str = Field(
        "sum",
        min_length=1,
        description="How the objectives' gradients become one: `sum`, `equal_norms`, `config`; with torchjd "
        "`pcgrad`, `gradvac`, `mgda`, `upgrad`, `dual_proj`, `cagrad`, `aligned_mtl`, `imtl_g`; or your own as "
        "`package.module:name` or `./file.py:name`.",
    )
    probe_every: int = Field(
        10, ge=0, le=MOST_STEPS, description="Steps between two measurements of the gradients' cosine; 0 is never."
    )
    routing: Literal["shared", "split", "routed"] = Field(
        "shared",
        description="Whose adapters a token takes: `shared` is one LoRA for all, `split` one for each of plan, draft, "
        "critique, refinement and answer, `routed` a shared one and those of all tasks, mixed in every layer by a "
        "learned gate of the token's task.",
    )
    gate_temperature: float = Field(
        1.0,
        ge=0.01,
        le=100,
        description="Of the gates of `routed`: near 0 a task takes its own LoRA alone, far above 1 all mix alike.",
    )
    gate_balance: float = Field(
        0.01,
        ge=0,
        le=1000,
        description="Weight of a loss that keeps all tasks' LoRAs in use: 0 where they are used alike, times 4 where "
        "every task takes the same.",
    )
    gate_learning_rate: float = Field(
        0.01, gt=0, le=1, description="Peak learning rate of the gates, by which Adam moves them in a step."
    )


class ParallelSection(Section):
    """What the processes of a run divide among them."""

    kind: Literal["auto", "single", "ddp", "fsdp2", "deepspeed"] = Field(
        "auto",
        description="`single`: one process. `ddp`: every process holds all weights and steps them alike. `fsdp2`: "
        "full weights in shards, with float32 masters, gradients, moments and the reference policy; of an adapter the "
        "frozen base. `deepspeed`: as `training.deepspeed` says. `auto`: `deepspeed` if there are such settings; "
        "`fsdp2` for full weights, if there are several processes or 16 bits; else `ddp` or `single`.",
    )
    replicate: int = Field(
        1,
        ge=1,
        le=65536,
        description="Copies of the shards (`fsdp2`): with one a node, weights are gathered inside a node only, and "
        "gradients cross between nodes once a step. Divides the number of processes.",
    )
    keep_gathered: bool = Field(
        False,
        description="An update keeps the weights of `fsdp2` gathered instead of gathering them in every pass: faster, "
        "for the memory of one more copy.",
    )
    reduce_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Type in which `fsdp2` adds up gradients of weights in 16 bits."
    )

    def problems(self) -> Iterator[Problem]:
        if self.kind in ("single", "ddp", "deepspeed"):
            for key in ("replicate", "keep_gathered", "reduce_dtype"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    yield Problem(key, f"kind '{self.kind}' does not read it; leave it out, or use 'fsdp2'")


OF_BITSANDBYTES = ("adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit")


class TrainingSection(Section):
    """The optimiser and the run."""

    max_steps: int = Field(100, ge=1, le=MOST_STEPS, description="Updates of the weights.")
    time_budget_s: float | None = Field(
        None,
        gt=0,
        description="Seconds after which the run ends early, the learning rate's course with it; null is no limit.",
    )
    learning_rate: float = Field(5e-4, gt=0, le=1, description="Peak learning rate.")
    image_learning_rate: float | None = Field(
        None, gt=0, le=1, description="Peak learning rate of the generation branch; null takes learning_rate."
    )
    lr_scheduler: Literal["constant_with_warmup", "constant", "linear", "cosine"] = Field(
        "constant_with_warmup", description="Course of the learning rate."
    )
    warmup_steps: int = Field(5, ge=0, le=MOST_STEPS, description="Steps of linear warm-up.")
    optim: Literal["adamw_torch", "adamw_torch_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"] = Field(
        "adamw_torch",
        description="AdamW: torch's, or one whose moments take 8 bits (`adamw_torch_8bit`: package torchao) or are "
        "paged out to the host (package bitsandbytes, GPU only, as `adamw_8bit`).",
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="Decay of the second moment.")
    adam_epsilon: float = Field(1e-8, gt=0, le=1, description="Added to the root of the second moment.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Decoupled weight decay.")
    max_grad_norm: float = Field(1.0, ge=1e-6, description="Gradients are scaled down to this norm.")
    token_budget: int = Field(
        4096,
        ge=64,
        le=2**24,
        description="Tokens in a micro-batch at most, shared ones counted once: the lever for memory.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Layers are computed again in the backward pass instead of kept: slower, far less memory."
    )
    deepspeed: dict[str, Any] | None = Field(
        None,
        description="DeepSpeed's settings, as in its JSON files: ZeRO stage 1 or 2 shards the optimiser over the "
        "processes, with `parallel.kind` `auto` or `deepspeed`.",
    )
    parallel: ParallelSection = section("What the processes of a run divide among them.")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of the run.")
    save_steps: int = Field(50, ge=1, le=MOST_STEPS, description="Steps between two checkpoints.")
    warning_signal: Literal["SIGUSR1", "SIGUSR2", "SIGXCPU"] | None = Field(
        "SIGUSR1",
        description="A signal that ends a run as SIGTERM does (the step is finished, a checkpoint saved): SLURM's "
        "`--signal=USR1@600`. Null leaves it alone.",
    )
    eval_steps: int = Field(
        50, ge=1, le=MOST_STEPS, description="Steps after which the prompts of observe.gallery are drawn again."
    )
    eval_prompts: int = Field(
        64, ge=1, le=100_000, description="Held-out prompts of a world, measured before and after training."
    )
    eval_items: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Most items of every other set that is measured (questions, edits, fixed drafts); null takes the "
        "bench's own numbers.",
    )
    output_dir: str = Field("runs", min_length=1, description="Folder in which each run gets a new folder of its own.")
    score_cache: str | None = Field(
        None, min_length=1, description="Folder in which deterministic scores outlive the run; null: memory alone."
    )
    num_threads: int | None = Field(
        None, ge=1, le=1024, description="Threads of a process on a CPU; null takes the physical cores."
    )

    def problems(self) -> Iterator[Problem]:
        if self.warmup_steps > max(self.max_steps, MOST_WARM_UP):
            yield Problem(
                "warmup_steps", f"the {self.max_steps} steps end before the learning rate is reached; lower it"
            )
        zero = (self.deepspeed or {}).get("zero_optimization")
        stage = zero.get("stage") if isinstance(zero, dict) else None
        if self.deepspeed is not None and stage not in ZERO_STAGES:
            yield Problem("deepspeed", f"zero_optimization.stage {stage}: {WHY_NOT}")
        kind = self.parallel.kind
        if self.deepspeed is not None and kind not in ("auto", "deepspeed"):
            yield Problem("parallel.kind", f"'{kind}' does not read training.deepspeed; leave that out, or use 'auto'")
        if self.deepspeed is None and kind == "deepspeed":
            yield Problem("deepspeed", "missing; give DeepSpeed's settings, such as {zero_optimization: {stage: 2}}")
        if self.deepspeed is not None and self.parallel.replicate > 1:
            yield Problem("parallel.replicate", "DeepSpeed places its shards itself; leave it out")
        if self.optim in OF_BITSANDBYTES and kind == "fsdp2":
            yield Problem("optim", "bitsandbytes knows no shards; use 'adamw_torch' or 'adamw_torch_8bit'")
        if self.deepspeed is not None and self.optim != "adamw_torch":
            yield Problem("optim", "with training.deepspeed the optimiser is sharded already; use 'adamw_torch'")

    @property
    def trains_in_bfloat16(self) -> bool:
        """DeepSpeed keeps float32 master weights beside weights in bfloat16."""
        return bool(((self.deepspeed or {}).get("bf16") or {}).get("enabled"))


EVERY_BRANCH = "both"


def _list_branches(schema: dict[str, Any]) -> None:
    backbones = [registered.find(registered.BACKBONES, name) for name in registered.names(registered.BACKBONES)]
    found = dict.fromkeys(branch for backbone in backbones for branch in backbone.spec.branches)
    schema["enum"] = [*found, EVERY_BRANCH]


class LoraSection(Section):
    """Low-rank adapters."""

    enabled: bool = Field(
        True, description="False trains the decoder's full weights (float32); the reference policy is then a copy."
    )
    rank: int = Field(16, ge=1, le=4096, description="Rank of the adapters.")
    rank_generation: int | None = Field(
        None, ge=1, le=4096, description="Rank on the generation branch; null takes rank."
    )
    alpha: float = Field(32.0, ge=0.001, le=1e5, description="The adapter is scaled by alpha / rank.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Dropout of the adapter's input.")
    branches: str = Field(
        EVERY_BRANCH,
        description="What gets adapters: `both` is everything that the backbone adapts, each other name one of its "
        "branches.",
        json_schema_extra=_list_branches,
    )

    def problems(self) -> Iterator[Problem]:
        if self.rank_generation is not None and self.branches == "understanding":
            yield Problem(
                "rank_generation", "branches 'understanding' puts no adapter on the generation branch; drop it"
            )


class ObserveSection(Section):
    """What a run leaves behind."""

    log_every: int = Field(1, ge=1, le=MOST_STEPS, description="Steps between two lines of metrics.")
    gallery: int = Field(
        8,
        ge=0,
        le=10_000,
        description="Prompts drawn every training.eval_steps, always the same; held-out ones of a world.",
    )
    keep_trajectories: int = Field(
        16, ge=0, le=100_000, description="Best, worst and random trajectories kept of every evaluation."
    )
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (), strict=False, description="Trackers beside the JSON lines."
    )
