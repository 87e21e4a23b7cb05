"""LoRA on a policy's decoder, by branch: attach, switch off, save and load in PEFT's layout, merge.

A module is adapted in place: PEFT puts a LoRA layer where a linear layer was and the model's own class and `forward`
stay, so a policy needs not know. Every LoRA layer computes W x + scale * B A x; B starts at zero, so a fresh adapter
changes nothing. The reference policy is the same module with the adapter switched off: no second copy of the weights.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from r3_rl.errors import CheckpointError, InputError
from r3_rl.policy.backbone import Branches, branch_of
from r3_rl.policy.lora import (
    NAME,
    AdapterSettings,
    MergedLinear,
    adapted_layers,
    find_slots,
    inject,
    lora_config,
    remove,
    swapped,
)
from r3_rl.policy.weights import describe_mismatch

__all__ = [
    "AdapterSettings",
    "adapted_layers",
    "adapter_disabled",
    "adapter_merged",
    "attach",
    "base_fingerprint",
    "load_adapter",
    "merge",
    "save_adapter",
    "trainable_parameters",
    "training_mode",
]

BASE_FILE = "base.json"
"""Beside an adapter's weights: which base it belongs to."""
RECIPE_FILE = "recipe.resolved.yaml"

_PREFIX = "base_model.model."  # what PEFT puts before a module's own names in the file


def attach(module: nn.Module, settings: AdapterSettings, branches: Branches, *, seed: int) -> nn.Module:
    """Puts a fresh adapter into the module, freezes everything else, and returns the same module.

    A ~ uniform(+-1 / sqrt(inputs)), B = 0, both float32 whatever the base's type.

    Args:
        module: of any backbone, without an adapter.
        settings: size and place.
        branches: of the backbone.
        seed: of A; the same seed gives the same adapter on every device.

    Raises InputError when a branch matches no linear layer, with the nearest names.
    """
    config = lora_config(module, settings, branches)
    inject(module, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapted_layers(module).values():
            a = layer.lora_A[NAME].weight
            bound = 1 / math.sqrt(a.shape[1])
            a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=generator))
            layer.lora_B[NAME].weight.zero_()
    return module


def trainable_parameters(module: nn.Module, branches: Branches) -> dict[str, dict[str, nn.Parameter]]:
    """What an optimiser is to train, by branch and name; works with an adapter and with full weights."""
    found: dict[str, dict[str, nn.Parameter]] = {branch: {} for branch in branches}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            found[branch_of(name, branches)][name] = parameter
    return found


@contextmanager
def adapter_disabled(module: nn.Module) -> Iterator[None]:
    """Inside, the module is its base: the reference policy. Inside `adapter_merged` too.

    The LoRA layers step aside for the linear layers they wrap, so nothing is computed for them and no flag of theirs
    changes. Raises InputError when the module has no adapter.
    """
    slots = find_slots(module)
    with swapped(slots, [slot.layer.get_base_layer() for slot in slots]):
        yield


@contextmanager
def training_mode(module: nn.Module, *, seed: Sequence[int]) -> Iterator[None]:
    """Inside, the module is in training mode and its adapter drops; afterwards it is in evaluation mode.

    What is dropped follows from `seed`, and torch's random state is afterwards what it was before: a resumed run drops
    what the uninterrupted one drops, however much randomness was used elsewhere.

    Args:
        module: with or without an adapter.
        seed: numbers >= 0, such as the run's seed, the step and the rank.
    """
    device = next(module.parameters()).device
    module.train()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(np.random.SeedSequence(tuple(seed)).generate_state(1, np.uint64)[0] >> 1))
            yield
    finally:
        module.eval()


@contextmanager
def adapter_merged(module: nn.Module) -> Iterator[None]:
    """Inside, every adapted layer is one plain linear layer with weight W + scale * B A; afterwards all is as before.

    The base's tensors are never written, so nothing drifts. A backward pass inside leaves its gradient in A and B, as
    if the adapter stood beside the weights; the weights are those of the moment of entry, and the adapter's dropout is
    not applied. Costs a second copy of the adapted weights. For float32 weights only: in bfloat16 the sum would round
    most of the adapter away, and what is sampled would no longer be the policy that is trained. Raises InputError for
    other types, and when the module has no adapter.
    """
    slots = find_slots(module)
    types = {slot.layer.get_base_layer().weight.dtype for slot in slots}
    if types != {torch.float32}:
        raise InputError(
            f"an adapter on {', '.join(sorted(str(t) for t in types))} weights is not merged",
            hint="use float32 weights, or leave the adapter beside them",
        )
    with swapped(slots, [MergedLinear(slot.layer) for slot in slots]):
        yield


def merge(module: nn.Module) -> nn.Module:
    """Adds the adapter to the weights for good, W <- W + scale * B A (summed in float32), and removes its layers.

    Raises InputError when the module has no adapter.
    """
    for slot in find_slots(module):
        slot.layer.get_base_layer().weight = MergedLinear(slot.layer).weight
    remove(module)
    return module


def save_adapter(module: nn.Module, folder: str | Path, *, fingerprint: str, recipe_text: str | None = None) -> Path:
    """Writes the adapter in PEFT's layout, its base's fingerprint and, where given, the resolved recipe beside it.

    `peft.PeftModel.from_pretrained(base, folder)` reads it. Every file is written aside and renamed; other files of
    the folder stay. Raises InputError when the module has no adapter.

    Args:
        module: adapted by `attach` or `load_adapter`.
        folder: created when missing.
        fingerprint: of the base's weights.
        recipe_text: YAML.
    """
    folder = Path(folder)
    tensors = {name: p.detach().cpu().contiguous() for name, p in _stored_parameters(module).items()}
    config = copy.copy(module.peft_config[NAME])
    config.inference_mode = True  # so that whoever loads it gets frozen weights, as PEFT's own saving does
    aside = folder / ".partial"
    shutil.rmtree(aside, ignore_errors=True)  # what a crash left behind must not be renamed into place
    aside.mkdir(parents=True)
    save_file(tensors, aside / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    config.save_pretrained(str(aside))
    (aside / BASE_FILE).write_text(json.dumps({"fingerprint": fingerprint}, indent=1) + "\n", encoding="utf-8")
    if recipe_text is not None:
        (aside / RECIPE_FILE).write_text(recipe_text, encoding="utf-8")
    for path in sorted(aside.iterdir()):
        os.replace(path, folder / path.name)
    aside.rmdir()
    return folder


def load_adapter(module: nn.Module, folder: str | Path, *, fingerprint: str | None = None) -> nn.Module:
    """Reads a saved adapter into the module and returns the module.

    A module without an adapter gets one, frozen; a module that `attach` prepared keeps its trainable parameters and
    takes the values over.

    Args:
        module: the base the adapter was trained on.
        folder: written by `save_adapter`, or by PEFT itself.
        fingerprint: of the base at hand; the adapter is refused when it remembers another.

    Raises CheckpointError for another base, a missing or broken file, another kind of adapter, and when any tensor is
    missing, surplus or misshapen.
    """
    folder = Path(folder)
    config = _read_config(folder)
    stored = _read_tensors(folder)
    if fingerprint is not None:
        _refuse_other_base(folder, fingerprint)
    prepared = bool(adapted_layers(module))
    if not prepared:
        _refuse_foreign_names(folder, module, stored)
        inject(module, config)
    elif different := _differences(config, module.peft_config[NAME]):
        raise CheckpointError(f"{folder}: not the adapter that this run trains: {different}")
    expected = _stored_parameters(module)
    problems = describe_mismatch(
        {name: tuple(p.shape) for name, p in expected.items()}, {name: tuple(t.shape) for name, t in stored.items()}
    )
    if problems:
        if not prepared:
            remove(module)
        raise CheckpointError(f"{folder}: {len(problems)} tensors do not fit the model:\n  " + "\n  ".join(problems))
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(stored[name])
    return module


def base_fingerprint(folder: str | Path) -> str | None:
    """The fingerprint of the base that the adapter in `folder` remembers; None when nobody wrote one down."""
    path = Path(folder) / BASE_FILE
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["fingerprint"]) or None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: names no base ({error!r})", hint="save the adapter again") from error


def _stored_parameters(module: nn.Module) -> dict[str, Tensor]:
    """The adapter's parameters under the names they have in the file."""
    return {
        f"{_PREFIX}{slot.path}.{part}.weight": getattr(slot.layer, part)[NAME].weight
        for slot in find_slots(module)
        for part in ("lora_A", "lora_B")
    }


def _read_config(folder: Path) -> LoraConfig:
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {CONFIG_NAME}", hint="give the folder of an adapter")
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: not an adapter's configuration ({error})") from error
    if not isinstance(config, LoraConfig) or config.use_dora or config.use_rslora or config.modules_to_save:
        raise CheckpointError(f"{path}: not plain LoRA", hint="load it with peft onto the base instead")
    return config


def _read_tensors(folder: Path) -> Mapping[str, Tensor]:
    path = folder / SAFETENSORS_WEIGHTS_NAME
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing", hint="only safetensors are read") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})", hint="save it again") from error


def _refuse_foreign_names(folder: Path, module: nn.Module, stored: Mapping[str, Tensor]) -> None:
    own = dict(module.named_modules())
    named = [name.removeprefix(_PREFIX).rpartition(".lora_")[0] for name in stored]
    if not any(name in own for name in named):
        first = next(iter(named), "nothing")
        raise CheckpointError(
            f"{folder}: the adapter sits on layers that this model does not have, such as {first}",
            hint="load the base that the adapter was trained on",
        )


def _refuse_other_base(folder: Path, fingerprint: str) -> None:
    remembered = base_fingerprint(folder)
    if remembered is None:
        raise CheckpointError(
            f"{folder}: {BASE_FILE} is missing, nothing says which base the adapter belongs to",
            hint="load it with peft if you know that it fits",
        )
    if remembered != fingerprint:
        raise CheckpointError(
            f"{folder}: trained on another base (weights {remembered[:12]}, these are {fingerprint[:12]})",
            hint="load the base that the adapter was trained on",
        )


def _differences(stored: LoraConfig, attached: LoraConfig) -> str:
    names = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern")
    pairs = {name: (getattr(stored, name), getattr(attached, name)) for name in names}
    return ", ".join(
        f"{name} {there} in the file, {here} here" for name, (there, here) in pairs.items() if there != here
    )
