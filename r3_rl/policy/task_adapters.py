"""What an adapter that is routed by task amounts to for each task: one plain LoRA, in PEFT's layout."""

from __future__ import annotations

import copy
from pathlib import Path

from peft import LoraConfig
from torch import Tensor, nn

from r3_rl.errors import InputError
from r3_rl.policy.adapter_files import PREFIX, write_adapter
from r3_rl.policy.routing import routed_layers, routing_of


def save_task_adapter(
    module: nn.Module, task: str, folder: str | Path, *, fingerprint: str, recipe_text: str | None = None
) -> Path:
    """Write the plain adapter of one task; `peft.PeftModel.from_pretrained(base, folder)` reads it.

    With P parts of rank r it has rank P r: A of all parts below one another, B side by side, each times its gate.

    Args:
        module: with an adapter that is routed by task.
        task: one of `types.STAGES`.
        folder: created when missing.
        fingerprint: of the base's weights.
        recipe_text: YAML, written beside it.

    Raises:
        InputError: the module has no such adapter.
    """
    if (routing := routing_of(module)) is None:
        raise InputError("the model has no adapter that is routed by task", hint="save its adapter as it is")
    tensors: dict[str, Tensor] = {}
    for name, layer in routed_layers(module).items():
        a, b = layer.factors(task)
        tensors |= {f"{PREFIX}{name}.lora_A.weight": a, f"{PREFIX}{name}.lora_B.weight": b}
    times = 1 if routing.kind == "split" else len(routing.parts)
    config = _times(module.peft_config[routing.parts[0]], times)
    return write_adapter(Path(folder), config, tensors, fingerprint=fingerprint, recipe_text=recipe_text)


def _times(config: LoraConfig, times: int) -> LoraConfig:
    """Of so many times the rank and the same scale."""
    wide = copy.copy(config)
    wide.r, wide.lora_alpha = config.r * times, config.lora_alpha * times
    wide.rank_pattern = {place: rank * times for place, rank in config.rank_pattern.items()}
    wide.alpha_pattern = {place: alpha * times for place, alpha in config.alpha_pattern.items()}
    return wide
