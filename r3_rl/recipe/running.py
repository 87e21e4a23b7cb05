"""Sections `balance`, `training`, `lora` and `observe`: the weights, how they are stepped, and the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from r3_rl import registered
from r3_rl.recipe.base import MOST_STEPS, Problem, Section, section

ZERO_STAGES = (1, 2, 3)
"""Of DeepSpeed's ZeRO. In the last one weights are in shards too."""


def zero_stage(deepspeed: Mapping[str, Any] | None) -> int | None:
    """Return the stage of ZeRO that DeepSpeed's settings ask for; None where they ask for none.

    >>> zero_stage({"zero_optimization": {"stage": 2}})
    2
    """
    zero = (deepspeed or {}).get("zero_optimization")
    return zero.get("stage") if isinstance(zero, Mapping) else None


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
    image_gradients: Literal["all", "generation"] = Field(
        "all",
        description="Which weights learn from images: `all` that are trained, or those of the branch that draws alone: "
        "learning to draw then changes nothing that reads.",
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

    max_steps: int = Field(
        100, ge=0, le=MOST_STEPS, description="Updates of the weights; 0 only measures what the run begins from."
    )
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
        "processes, stage 3 full weights too, with `parallel.kind` `auto` or `deepspeed`.",
    )
    parallel: ParallelSection = section("What the processes of a run divide among them.")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of the run.")
    save_steps: int = Field(50, ge=1, le=MOST_STEPS, description="Steps between two checkpoints.")
    async_save: bool = Field(
        True,
        description="Full weights and their moments are copied to the host's memory, where they fit, and written while "
        "training goes on. The run waits for everything else, and for DeepSpeed.",
    )
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
    base_measured: str | None = Field(
        None,
        min_length=1,
        description="Folder that keeps what was measured of a world's base before training: read where a run with the "
        "same base, loop and items has left it, else measured and left. A study gives one to its runs.",
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
        stage = zero_stage(self.deepspeed)
        if self.deepspeed is not None and stage not in ZERO_STAGES:
            yield Problem("deepspeed", f"zero_optimization.stage {stage}: use 1, 2 or 3")
        kind = self.parallel.kind
        if self.deepspeed is not None and kind not in ("auto", "deepspeed"):
            yield Problem("parallel.kind", f"'{kind}' does not read training.deepspeed; leave that out, or use 'auto'")
        if self.deepspeed is None and kind == "deepspeed":
            yield Problem("deepspeed", "missing; give DeepSpeed's settings, such as {zero_optimization: {stage: 2}}")
        for key in ("replicate", "keep_gathered", "reduce_dtype") if self.deepspeed is not None else ():
            if getattr(self.parallel, key) != ParallelSection.model_fields[key].default and kind == "auto":
                yield Problem(f"parallel.{key}", "DeepSpeed places its shards itself; leave it out")
        if self.optim in OF_BITSANDBYTES and kind == "fsdp2":
            yield Problem("optim", "bitsandbytes knows no shards; use 'adamw_torch' or 'adamw_torch_8bit'")
        if self.deepspeed is not None and self.optim != "adamw_torch":
            yield Problem("optim", "with training.deepspeed the optimiser is sharded already; use 'adamw_torch'")

    @property
    def trains_in_bfloat16(self) -> bool:
        """DeepSpeed keeps float32 master weights beside weights in bfloat16."""
        return bool(((self.deepspeed or {}).get("bf16") or {}).get("enabled"))

    @property
    def limits(self) -> tuple[str, ...]:
        """What the engine of these settings cannot do though others can, as sentences."""
        if self.deepspeed is None:
            return ()
        return (
            "DeepSpeed goes on from a checkpoint in the same number of processes only, and steps weights that nobody "
            "learned from with a gradient of zero; neither holds for fsdp2",
        )

    @property
    def shards_weights(self) -> bool:
        """Whether an engine is named that holds weights in shards; `auto` decides when it knows the processes."""
        return self.parallel.kind == "fsdp2" or zero_stage(self.deepspeed) == 3


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
    start: str | None = Field(
        None,
        min_length=1,
        description="Folder of a run or of a plain adapter to begin from; rank, alpha, dropout and branches are then "
        "that adapter's. What is measured before training, and the reference policy, stay the base. Null begins with "
        "a fresh adapter, which changes nothing.",
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
        if self.start is not None and not self.enabled:
            yield Problem("start", "full weights have no adapter to begin from; set enabled to true")
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
