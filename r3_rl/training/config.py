"""Arguments of the trainer: the keys of a recipe, under TRL's names where the meaning is TRL's.

Types are written here, everything else about a key (default, bounds, description) in the recipe's sections.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import reduce
from typing import Any

from pydantic import ValidationError

from r3_rl.errors import InputError
from r3_rl.recipe import Recipe
from r3_rl.recipe.base import Section, default
from r3_rl.recipe.branching import BranchSection
from r3_rl.recipe.guarding import GuardsSection
from r3_rl.recipe.learning import AlgorithmSection, ProgressiveSection, TreeSection
from r3_rl.recipe.running import BalanceSection, ObserveSection, ParallelSection, TrainingSection
from r3_rl.recipe.sampling import RolloutSection
from r3_rl.recipe.supervised import SupervisedSection

_PLACES: dict[type[Section], str] = {
    RolloutSection: "rollout",
    AlgorithmSection: "algorithm",
    TreeSection: "algorithm.tree",
    ProgressiveSection: "algorithm.progressive",
    BalanceSection: "balance",
    TrainingSection: "training",
    ParallelSection: "training.parallel",
    ObserveSection: "observe",
}


def _key(section: type[Section], name: str) -> Any:
    """A key of a recipe: its default is the recipe's."""
    return field(default=default(section, name), metadata={"section": section, "name": name})


@dataclass(kw_only=True)
class R3Config:
    """What `R3Trainer` is told. One optimiser step is one step of the schedule.

    Defaults, bounds and meanings are those of the recipe's keys (docs/recipes.md). Names are the recipe's last words,
    or TRL's: `lr_scheduler_type` is `training.lr_scheduler`, `logging_steps` is `observe.log_every`, `report_to` is
    `observe.trackers`.

    Raises InputError for a value that a recipe could not have.

    >>> R3Config("runs/mine", num_generations=4).branch
    BranchSection(plan=4, draft=1, critique=4, refinement=1, answer=4)
    >>> R3Config("runs/mine", epsilon=2.0)
    Traceback (most recent call last):
    r3_rl.errors.InputError: R3Config epsilon=2.0: Input should be less than 1
    """

    output_dir: str = field(kw_only=False)
    """Folder of the checkpoints."""

    num_prompts: int = _key(RolloutSection, "num_prompts")
    nodes_per_prompt: int = _key(RolloutSection, "nodes_per_prompt")
    branch: Any = field(default_factory=BranchSection, metadata={"section": RolloutSection, "name": "branch"})
    """Children of every node: a mapping with any of plan, draft, critique, refinement, answer; a section then."""
    rounds: int = _key(RolloutSection, "rounds")
    num_parts: int = _key(RolloutSection, "num_parts")

    schedule: str = _key(AlgorithmSection, "schedule")
    node_choice: str = _key(TreeSection, "node_choice")
    perfect_ratio: float = _key(TreeSection, "perfect_ratio")
    reason_steps: int = _key(TreeSection, "reason_steps")
    reflect_steps: int = _key(TreeSection, "reflect_steps")
    depth: int = _key(TreeSection, "depth")
    synthetic_fraction: float = _key(TreeSection, "synthetic_fraction")
    apart_fraction: float = _key(ProgressiveSection, "apart_fraction")
    ramp_fraction: float = _key(ProgressiveSection, "ramp_fraction")
    plateau_steps: int | None = _key(ProgressiveSection, "plateau_steps")
    plateau_gain: float = _key(ProgressiveSection, "plateau_gain")
    restart_rate: bool = _key(ProgressiveSection, "restart_rate")
    supervised: Any = _key(AlgorithmSection, "supervised")  # noqa: RUF009 - a field
    """A mapping of tasks to numbers of examples, or None; a section then."""
    answer_share: float = _key(AlgorithmSection, "answer_share")
    answer_own_share: float = _key(AlgorithmSection, "answer_own_share")
    frozen_stages: Sequence[str] = _key(AlgorithmSection, "frozen_stages")
    gain: str = _key(AlgorithmSection, "gain")
    format_mode: str = _key(AlgorithmSection, "format_mode")
    format_weight: float = _key(AlgorithmSection, "format_weight")
    decision_weight: float = _key(AlgorithmSection, "decision_weight")
    scale_rewards: str = _key(AlgorithmSection, "scale_rewards")
    multi_objective_aggregation: str = _key(AlgorithmSection, "multi_objective_aggregation")
    max_failed_fraction: float = _key(AlgorithmSection, "max_failed_fraction")
    max_zero_variance_steps: int = _key(AlgorithmSection, "max_zero_variance_steps")
    text_loss: str = _key(AlgorithmSection, "text_loss")
    image_loss: str = _key(AlgorithmSection, "image_loss")
    epsilon: float = _key(AlgorithmSection, "epsilon")
    epsilon_high: float | None = _key(AlgorithmSection, "epsilon_high")
    image_epsilon: float = _key(AlgorithmSection, "image_epsilon")
    beta: float = _key(AlgorithmSection, "beta")
    image_beta: float = _key(AlgorithmSection, "image_beta")
    image_kl: str = _key(AlgorithmSection, "image_kl")
    text_loss_weight: float = _key(AlgorithmSection, "text_loss_weight")
    image_loss_weight: float = _key(AlgorithmSection, "image_loss_weight")
    num_iterations: int = _key(AlgorithmSection, "num_iterations")
    objectives: str = _key(BalanceSection, "objectives")
    aggregator: str = _key(BalanceSection, "aggregator")
    image_gradients: str = _key(BalanceSection, "image_gradients")
    probe_every: int = _key(BalanceSection, "probe_every")
    gate_balance: float = _key(BalanceSection, "gate_balance")
    gate_learning_rate: float = _key(BalanceSection, "gate_learning_rate")

    max_steps: int = _key(TrainingSection, "max_steps")
    time_budget_s: float | None = _key(TrainingSection, "time_budget_s")
    learning_rate: float = _key(TrainingSection, "learning_rate")
    image_learning_rate: float | None = _key(TrainingSection, "image_learning_rate")
    lr_scheduler_type: str = _key(TrainingSection, "lr_scheduler")
    warmup_steps: int = _key(TrainingSection, "warmup_steps")
    optim: str = _key(TrainingSection, "optim")
    adam_beta1: float = _key(TrainingSection, "adam_beta1")
    adam_beta2: float = _key(TrainingSection, "adam_beta2")
    adam_epsilon: float = _key(TrainingSection, "adam_epsilon")
    weight_decay: float = _key(TrainingSection, "weight_decay")
    max_grad_norm: float = _key(TrainingSection, "max_grad_norm")
    token_budget: int = _key(TrainingSection, "token_budget")
    parallel: str = _key(ParallelSection, "kind")
    replicate: int = _key(ParallelSection, "replicate")
    keep_gathered: bool = _key(ParallelSection, "keep_gathered")
    reduce_dtype: str = _key(ParallelSection, "reduce_dtype")
    deepspeed: dict[str, Any] | None = _key(TrainingSection, "deepspeed")  # noqa: RUF009 - a field
    seed: int = _key(TrainingSection, "seed")
    save_steps: int = _key(TrainingSection, "save_steps")
    async_save: bool = _key(TrainingSection, "async_save")
    warning_signal: str | None = _key(TrainingSection, "warning_signal")
    logging_steps: int = _key(ObserveSection, "log_every")
    report_to: str | Sequence[str] = _key(ObserveSection, "trackers")

    num_generations: int | None = None
    """TRL's name, instead of `branch`: so many plans of a prompt with one draft each, as many critiques of an image
    with one refinement each, and as many answers to a question."""
    reward_weights: list[float] | None = None
    """Of plain scorers; None is 1 each."""
    data_seed: int | None = None
    """Order of the prompts; None takes `seed`."""
    save_strategy: str = "steps"
    """`steps`, or `no` for no checkpoint."""
    save_total_limit: int | None = None
    """Checkpoints that are kept, the newest; None keeps all."""
    run_name: str | None = None
    """What trackers call the run; None takes the output folder."""
    disable_tqdm: bool = False
    """True shows no progress bar."""
    guards: Any = field(default_factory=GuardsSection)
    """What each guard does: a mapping of their names to `warn`, `stop` or `off`; a `GuardsSection` afterwards."""
    hub_model_id: str | None = None
    """Where `push_to_hub` sends the model; None takes the output folder's name."""

    def __post_init__(self) -> None:
        if isinstance(self.report_to, str):
            self.report_to = () if self.report_to == "none" else (self.report_to,)
        self.report_to = tuple(self.report_to)
        if self.save_strategy not in ("steps", "no"):
            raise InputError(f"R3Config save_strategy={self.save_strategy!r}", hint="steps or no")
        for section in _PLACES:
            keys = {f.metadata["name"]: f.name for f in fields(self) if f.metadata.get("section") is section}
            try:
                section.model_validate({key: getattr(self, name) for key, name in keys.items()})
            except ValidationError as error:
                raise _refusal(error, keys) from error
        self.branch = _branch(self.branch, self.num_generations)
        if self.supervised is not None:
            self.supervised = SupervisedSection.model_validate(self.supervised)
        try:
            self.guards = GuardsSection.model_validate(self.guards)
        except ValidationError as error:
            places = (str(found["loc"][0]) for found in error.errors() if found["loc"])
            raise _refusal(error, {name: f"guards.{name}" for name in places}, known=GuardsSection) from error

    @classmethod
    def of_recipe(cls, recipe: Recipe, output_dir: str, **others: Any) -> R3Config:
        """The keys of a recipe. `others`: arguments that a recipe does not have."""
        keys = {f.name: f"{_PLACES[f.metadata['section']]}.{f.metadata['name']}" for f in fields(cls) if f.metadata}
        found: dict[str, Any] = {name: reduce(getattr, key.split("."), recipe) for name, key in keys.items()}  # type: ignore[arg-type]
        return cls(output_dir, **found, **others)

    def to_dict(self) -> dict[str, Any]:
        """All arguments by name, for trackers and callbacks."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {
            "branch": self.branch.model_dump(),
            "guards": self.guards.model_dump(),
            "supervised": self.supervised.model_dump() if self.supervised else None,
        }

    def to_json_string(self) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), indent=1, default=list)


def _branch(branch: Any, num_generations: int | None) -> BranchSection:
    given = BranchSection.model_validate(branch)
    if num_generations is None:
        return given
    of_trl = BranchSection(plan=num_generations, critique=num_generations, answer=num_generations)
    if given not in (BranchSection(), of_trl):
        raise InputError("both branch and num_generations", hint="give one of them")
    return of_trl


def _refusal(error: ValidationError, keys: Mapping[str, str], known: type[Section] = BranchSection) -> InputError:
    """Of the first problem; keys: the arguments' names by those of a recipe; known: the section of an unknown key."""
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return InputError(f"R3Config {first['msg']}")
    place, *below = map(str, first["loc"])
    hint = f"known: {', '.join(known.model_fields)}" if first["type"] == "extra_forbidden" else ""
    return InputError(f"R3Config {'.'.join((keys[place], *below))}={first['input']!r}: {first['msg']}", hint=hint)
