"""What users of TRL hand over, as what the trainer works with: a `datasets.Dataset` of prompts, a `peft.LoraConfig`, a
`GRPOConfig`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from enum import Enum
from typing import Any

from r3_rl.errors import DataError, InputError
from r3_rl.policy.adapters import AdapterSettings
from r3_rl.training.config import R3Config
from r3_rl.types import Prompt

PROMPT = "prompt"
"""The column with what is to be drawn; all others go to the scorers."""
_SIZES = ("per_device_train_batch_size", "gradient_accumulation_steps")
_ELSEWHERE = {*_SIZES, "generation_batch_size", "bf16", "use_cpu", "gradient_checkpointing"}
"""Of a `GRPOConfig`: how many rollouts a step has, which is taken; how they are cut, and where and in which type they
are computed, which the token budget and the loaded model say here."""
_LOSSES = {("importance_sampling_level", "sequence"): "gspo", ("loss_type", "cispo"): "cispo"}
"""Of a `GRPOConfig`: what it calls a loss of texts, and what we do."""
_WHOLE = ("max_steps", "warmup_steps", "save_steps", "logging_steps")
_TAKEN = {"r", "lora_alpha", "lora_dropout"}
_SAYS_NOTHING = {"task_type", "inference_mode", "peft_version", "base_model_name_or_path", "auto_mapping", "revision"}


def prompts_of(dataset: Any) -> list[Prompt]:
    """Read a data set of TRL's form: rows with a column `prompt`, a text or a conversation.

    Args:
        dataset: a `datasets.Dataset`, or any sequence of `Prompt`s, of mappings or of texts.

    Returns:
        One prompt a row. Of a conversation the last user message is drawn.

    Raises:
        DataError: a row without a usable prompt, or a data set whose length is unknown.

    >>> prompts_of([{"prompt": "a cross", "tag": "one"}, {"prompt": [{"role": "user", "content": "two circles"}]}])
    [Prompt(text='a cross', columns={'tag': 'one'}), Prompt(text='two circles', columns={})]
    """
    if isinstance(dataset, str):
        raise DataError(f"one text as train_dataset: {dataset[:40]!r}", hint="give a list of prompts")
    if not hasattr(dataset, "__len__"):
        raise DataError("a data set that streams has no order to resume in", hint="load it with streaming=False")
    return [row if isinstance(row, Prompt) else _prompt(row, number) for number, row in enumerate(dataset)]


def _prompt(row: Any, number: int) -> Prompt:
    if isinstance(row, str):
        row = {PROMPT: row}
    if not isinstance(row, Mapping) or PROMPT not in row:
        found = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise DataError(f"row {number} has no column '{PROMPT}': {found}", hint=f"rename_column(..., '{PROMPT}')")
    text = row[PROMPT] if isinstance(row[PROMPT], str) else _last_user_message(row[PROMPT])
    if not text.strip():
        raise DataError(f"row {number}: the prompt is empty", hint="say what is to be drawn, or leave the row out")
    return Prompt(text=text.strip(), columns={name: value for name, value in row.items() if name != PROMPT})


def _last_user_message(messages: Any) -> str:
    if not isinstance(messages, Sequence):
        return ""
    said = [m.get("content") for m in messages if isinstance(m, Mapping) and m.get("role") == "user"]
    content = said[-1] if said else ""
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content or () if isinstance(part, Mapping) and part.get("text"))


def adapter_of(config: Any) -> AdapterSettings | None:
    """Read a `peft.LoraConfig` as the adapter that is attached to the decoder's linear layers.

    Args:
        config: `AdapterSettings` and None are returned as they are. Of a `LoraConfig` rank, alpha and dropout are
            taken; what else it sets away from its default is refused, for it would not be done.

    Raises:
        InputError: another kind of adapter, or a field that cannot be kept.

    >>> from peft import LoraConfig
    >>> adapter_of(LoraConfig(r=4, lora_alpha=8))
    AdapterSettings(rank=4, rank_generation=None, alpha=8, dropout=0.0, branches='both', ...)
    """
    if config is None or isinstance(config, AdapterSettings):
        return config
    from peft import LoraConfig

    if not isinstance(config, LoraConfig):
        raise InputError(f"{type(config).__name__} as peft_config", hint="give peft.LoraConfig, or AdapterSettings")
    plain, given = asdict(LoraConfig()), asdict(config)
    moved = sorted(n for n in given if given[n] != plain.get(n) and n not in _TAKEN | _SAYS_NOTHING)
    if given["target_modules"] == "all-linear":
        moved.remove("target_modules")
    if moved:
        raise InputError(
            f"LoraConfig sets {', '.join(moved)}, which R3Trainer does not do",
            hint="leave it out; AdapterSettings(branches=...) chooses among the decoder's two experts",
        )
    return AdapterSettings(rank=config.r, alpha=config.lora_alpha, dropout=config.lora_dropout)


def config_of(args: Any) -> R3Config:
    """Read TRL's `GRPOConfig` as the trainer's arguments.

    Args:
        args: an `R3Config` is returned unchanged. Of a `GRPOConfig` the fields that R3Config has are taken, TRL's
            defaults included, and num_prompts = rollouts of a step / num_generations. What else it sets away from TRL's
            default is refused, for it would not be done.

    Raises:
        InputError: another kind of arguments, a field that cannot be kept, or no number of steps.
    """
    if isinstance(args, R3Config):
        return args
    try:
        from trl import GRPOConfig
    except ImportError:
        GRPOConfig = ()
    if not isinstance(args, GRPOConfig):
        raise InputError(f"{type(args).__name__} as args", hint="give R3Config, or GRPOConfig of the package trl")
    if args.max_steps <= 0:
        raise InputError("GRPOConfig without max_steps: R3Trainer counts steps, not epochs", hint="set max_steps")
    shared = {f.name for f in fields(R3Config)} & {f.name for f in fields(args)}
    same = {name: getattr(args, name) for name in (*_SIZES, "bf16", "use_cpu", "output_dir", "num_generations")}
    plain = GRPOConfig(**same)
    losses = {name: loss for (name, value), loss in _LOSSES.items() if getattr(args, name) == value}
    left = {f.name for f in fields(args) if f.init} - shared - _ELSEWHERE - set(losses)
    moved = sorted(name for name in left if getattr(args, name) != getattr(plain, name))
    if moved:
        raise InputError(
            f"GRPOConfig sets {', '.join(moved)}, which R3Trainer does not do",
            hint="leave it out; how texts are sampled is said by processing_class=LoopSettings(...)",
        )
    taken = {name: _plain_value(name, getattr(args, name)) for name in shared}
    if len(losses) == 1:
        taken["text_loss"] = next(iter(losses.values()))
    elif losses:
        raise InputError(f"GRPOConfig sets {' and '.join(losses)}: two losses of texts", hint="leave one of them out")
    return R3Config(**taken, num_prompts=args.generation_batch_size // args.num_generations)


def _plain_value(name: str, value: Any) -> Any:
    if isinstance(value, Enum):
        value = value.value
    if name == "optim" and value == "adamw_torch_fused":  # the same steps in one kernel
        return "adamw_torch"
    if name in _WHOLE and value == int(value):  # transformers reads 0.5 as a share of the run
        return int(value)
    return value
