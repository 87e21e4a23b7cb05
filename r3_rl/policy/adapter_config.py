"""What an adapter's `adapter_config.json` may say: values that PEFT can use, and plain LoRA on linear layers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

_KINDS = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "modules_to_save": "it brings whole modules",
    "lora_bias": "it brings biases",
    "target_parameters": "it adapts parameters outside of linear layers",
    "trainable_token_indices": "it trains embeddings of tokens",
    "layer_replication": "it repeats layers",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
}
"""Keys of other kinds than plain LoRA, each with its name; they count if they are set."""


class _Values(BaseModel):
    """The values that decide what an adapter computes; PEFT uses them without a look."""

    model_config = ConfigDict(strict=True, extra="ignore")

    r: int = Field(ge=1)
    lora_alpha: FiniteFloat = Field(gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | list[str] = Field(min_length=1)
    exclude_modules: str | list[str] | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, FiniteFloat] | None = None


def config_problem(values: Any) -> str:
    """Return what is wrong with a configuration's values, their key first; nothing if they are those of plain LoRA.

    >>> config_problem({"peft_type": "LORA", "r": 0, "lora_alpha": 16, "target_modules": ["q_proj"]})
    'r: Input should be greater than or equal to 1'
    >>> config_problem({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "*.q_proj"})
    "target_modules: '*.q_proj' is not a regular expression (nothing to repeat at position 0)"
    """
    if not isinstance(values, dict):
        return "not a JSON object"
    if values.get("peft_type") != "LORA":
        return f"peft_type: {str(values.get('peft_type'))[:40]} is not LORA"
    for key, kind in _KINDS.items():
        if values.get(key):
            return f"{key}: not plain LoRA ({kind})"
    if values.get("bias", "none") != "none":
        return f"bias: {str(values['bias'])[:40]!r} is not plain LoRA, which trains no biases"
    try:
        read = _Values.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{first['loc'][0]}: {first['msg']}"
    patterns = [(key, each) for key in ("rank_pattern", "alpha_pattern") for each in getattr(read, key) or {}]
    whole = [(key, getattr(read, key)) for key in ("target_modules", "exclude_modules")]
    patterns += [(key, each) for key, each in whole if isinstance(each, str)]
    if low := [rank for rank in (read.rank_pattern or {}).values() if rank < 1]:
        return f"rank_pattern: {low[0]} is less than 1"
    return _pattern_problem(patterns)


def _pattern_problem(patterns: Iterable[tuple[str, str]]) -> str:
    for key, pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            return f"{key}: {pattern[:60]!r} is not a regular expression ({error})"
    return ""
