"""LoRA on a policy's decoder, by branch: attach, switch off, save and load in PEFT's layout, merge.

A module is adapted in place by PEFT: a LoRA layer stands where a linear layer was, and the model's own class and
`forward` stay, so a policy needs not know. Every LoRA layer computes W x + scale * B A x; B starts at zero, so a fresh
adapter changes nothing. The reference policy is the same module with the adapter switched off: no second copy of the
weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, LoraModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from r3_rl.errors import CheckpointError, InputError
from r3_rl.policy.adapter_files import (
    PREFIX,
    read_config,
    read_routing,
    read_tensors,
    refuse_other_base,
    weights_file,
    write_adapter,
)
from r3_rl.policy.backbone import Branches, branch_of
from r3_rl.policy.lora import NAME, AdaptedLinear, AdapterSettings, lora_config
from r3_rl.policy.mismatch import describe_mismatch, refuse_infinite, renamed
from r3_rl.policy.routing import RoutedLinear, Routing, routed_layers, routing_of

__all__ = [
    "AdapterSettings",
    "adapted_layers",
    "adapter_disabled",
    "adapter_merged",
    "adds_nothing",
    "attach",
    "drops",
    "load_adapter",
    "merge",
    "save_adapter",
    "trainable_parameters",
    "training_mode",
]


def attach(module: nn.Module, settings: AdapterSettings, branches: Branches, *, seed: int) -> nn.Module:
    """Puts a fresh adapter into the module, freezes everything else, and returns the same module.

    A ~ uniform(+-1 / sqrt(inputs)), B = 0, both float32 whatever the base's type.

    Args:
        module: of any backbone, without an adapter.
        settings: size and place.
        branches: of the backbone.
        seed: of A; the same seed gives the same adapter on every device.

    Raises InputError when a branch matches no linear layer, with names of those there are, and for a second adapter.
    """
    if adapted_layers(module):
        raise InputError("the model has an adapter already", hint="merge it or load the base anew")
    config, routing = lora_config(module, settings, branches), None
    if settings.routing != "shared":
        routing = Routing(kind=settings.routing, gate_temperature=settings.gate_temperature)
    _inject(module, config, routing)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in _parts(routing):
            for layer in adapted_layers(module).values():
                a = layer.lora_A[part].weight
                bound = 1 / math.sqrt(a.shape[1])
                a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=generator))
                layer.lora_B[part].weight.zero_()
    return module


def adapted_layers(module: nn.Module) -> dict[str, AdaptedLinear]:
    """The module's LoRA layers by name, in order; empty without an adapter."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, AdaptedLinear)}


def adds_nothing(module: nn.Module) -> bool:
    """Whether the module's adapter is as it was attached, with B = 0 in all its parts: the policy is its base."""
    parts = [part.weight for layer in adapted_layers(module).values() for part in layer.lora_B.values()]
    return not any(bool(weight.any()) for weight in parts)


def drops(module: nn.Module) -> bool:
    """Whether the module has an adapter with dropout."""
    return any(layer.has_dropout for layer in adapted_layers(module).values())


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

    Raises InputError when the module has no adapter.
    """
    layers = [(layer, not layer.disable_adapters) for layer in _layers(module)]
    # PEFT freezes an adapter that it switches off and makes one that it switches on trainable, whatever it was before
    flags = [(p, p.requires_grad) for layer, _ in layers for p in layer.parameters()]
    for layer, _ in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer, enabled in layers:
            layer.enable_adapters(enabled)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


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
    """Inside, every layer that can runs on one cached weight, W + scale * B A of the moment of entry: the same numbers
    in fewer products.

    The caches belong to the layers (`AdaptedLinear.summed`), and nothing else of the module changes. A backward pass
    inside leaves its gradient in A and B, as if the adapter stood beside the weights. Costs a second copy of the
    adapted weights. A layer in bfloat16 cannot, since the sum would round most of the adapter away, nor one that drops
    in training mode; those, and a module without an adapter, stay as they are.
    """
    with ExitStack() as caches:
        for layer in adapted_layers(module).values():
            if layer.base_layer.weight.dtype == torch.float32 and not (layer.training and layer.has_dropout):
                caches.enter_context(layer.summed())
        yield


def merge(module: nn.Module) -> nn.Module:
    """Adds the adapter to the weights for good, W <- W + scale * B A (summed in float32), and removes its layers.

    Raises InputError when the module has no adapter, or one of which every task has weights of its own.
    """
    if routing_of(module) is not None:
        raise InputError(
            "an adapter that is routed by task adds something else to the weights for each task",
            hint="export it without merge, as one plain adapter a task",
        )
    for layer in _layers(module):
        layer.merge()
    _unload(module)
    return module


def save_adapter(module: nn.Module, folder: str | Path, *, fingerprint: str, recipe_text: str | None = None) -> Path:
    """Writes the adapter in PEFT's layout, its base's fingerprint and, where given, the resolved recipe beside it.

    `peft.PeftModel.from_pretrained(base, folder)` reads it, but for one that is routed by task: that has all its parts
    and gates in one file, and `policy.task_adapters` writes what PEFT reads. Every file is written aside and renamed;
    other files of the folder stay. Raises InputError when the module has no adapter.

    Args:
        module: adapted by `attach` or `load_adapter`.
        folder: created when missing.
        fingerprint: of the base's weights.
        recipe_text: YAML.
    """
    tensors, routing = _tensors(module), routing_of(module)
    config = module.peft_config[_parts(routing)[0]]
    return write_adapter(Path(folder), config, tensors, fingerprint=fingerprint, recipe_text=recipe_text, how=routing)


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
    config, routing = read_config(folder), read_routing(folder)
    stored = read_tensors(weights_file(folder))
    for name, tensor in stored.items():
        if not tensor.is_floating_point():
            raise CheckpointError(f"{folder}: {name} is of type {tensor.dtype}", hint="load one that was not quantised")
        refuse_infinite(folder, name, tensor)
    if fingerprint is not None:
        refuse_other_base(folder, fingerprint)
    prepared = bool(adapted_layers(module))
    if prepared and (different := _differences(module, config, routing)):
        raise CheckpointError(f"{folder}: not the adapter that this run trains: {different}")
    if not prepared:
        try:
            _inject(module, config, routing)
        except ValueError as error:  # PEFT found none of the layers
            first = next(iter(stored), "nothing").removeprefix(PREFIX).rpartition(".lora_")[0]
            raise CheckpointError(
                f"{folder}: the adapter sits on layers that this model does not have, such as {first}",
                hint="load the base that the adapter was trained on",
            ) from error
    sizes = _sizes(_tensors(module))
    if problems := [words] if (words := renamed(sizes, stored)) else describe_mismatch(sizes, _sizes(stored)):
        if not prepared:
            _unload(module)
        if words:
            raise CheckpointError(f"{folder}: {words}", hint="rename them, or save it with PEFT's save_pretrained")
        raise CheckpointError(f"{folder}: {len(problems)} tensors do not fit the model:\n  " + "\n  ".join(problems))
    if routing is None:
        set_peft_model_state_dict(module, stored, adapter_name=NAME)
    else:
        with torch.no_grad():
            for name, parameter in _tensors(module).items():
                parameter.copy_(stored[name])
    return module


def _layers(module: nn.Module) -> list[AdaptedLinear]:
    found = list(adapted_layers(module).values())
    if not found:
        raise InputError("the model has no adapter", hint="attach or load one first")
    return found


def _parts(routing: Routing | None) -> tuple[str, ...]:
    """PEFT's names for what an adapter is made of."""
    return (NAME,) if routing is None else routing.parts


def _inject(module: nn.Module, config: LoraConfig, routing: Routing | None) -> None:
    """Lets PEFT put our layers in, in evaluation mode; their weights are float32 whatever the base's type."""
    configs = {part: copy.copy(config) for part in _parts(routing)}
    for own in configs.values():
        own._register_custom_module({nn.Linear: AdaptedLinear if routing is None else RoutedLinear})
    with torch.random.fork_rng(devices=[]):  # PEFT draws numbers that are overwritten; the caller's stream stays
        first, *others = configs
        tuner = LoraModel(module, configs, first)
        for part in others:
            tuner.inject_adapter(module, part)
    for layer in adapted_layers(module).values():
        layer.eval()
        for part in (layer.lora_A, layer.lora_B):
            part.float()
        if routing is not None:
            assert isinstance(layer, RoutedLinear)
            layer.route(routing, frozen=config.inference_mode)


def _unload(module: nn.Module) -> None:
    """Puts the base's own layers back for good, as PEFT does in a model of its own, which a module does not keep."""
    for name, layer in [(name, layer) for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)]:
        module.set_submodule(name, layer.get_base_layer())
    del module.peft_config


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The adapter's tensors under the names they have in the file. Raises InputError when there are none.

    Those of linear layers only: PEFT adapts embeddings too, which a file may ask for and nothing here switches off.
    """
    _layers(module)
    if routed := routed_layers(module):
        every = {f"{name}.{own}": p for name, layer in routed.items() for own, p in layer.named_parameters()}
        return {name: p for name, p in every.items() if ".base_layer." not in name}
    own = tuple(f"{name}." for name in adapted_layers(module))
    # not its state dict: whoever shards the module has hooks there, which change what it holds
    held = {name: p.detach() for name, p in module.named_parameters()}
    tensors = get_peft_model_state_dict(module, state_dict=held, adapter_name=NAME, save_embedding_layers=False)
    return {f"{PREFIX}{name}": tensor for name, tensor in tensors.items() if name.startswith(own)}


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _differences(module: nn.Module, stored: LoraConfig, routing: Routing | None) -> str:
    """Between an adapter's files and the one that a module has."""
    own = routing_of(module)
    attached = module.peft_config[_parts(own)[0]]
    names = ("r", "lora_alpha", "use_rslora", "target_modules", "rank_pattern", "alpha_pattern")
    pairs = {name: (getattr(stored, name), getattr(attached, name)) for name in names}
    pairs["routing"] = (routing, own)
    return ", ".join(
        f"{name} {there} in the file, {here} here" for name, (there, here) in pairs.items() if there != here
    )
