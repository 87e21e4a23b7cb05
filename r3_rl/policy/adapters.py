"""LoRA on a policy's decoder, by branch: attach, switch off, save and load in PEFT's layout, merge.

A module is adapted in place: PEFT puts a LoRA layer where a linear layer was and the model's own class and `forward`
stay, so a policy needs not know. Every LoRA layer computes W x + scale * B A x; B starts at zero, so a fresh adapter
changes nothing. The reference policy is the same module with the adapter switched off: no second copy of the weights.
"""

from __future__ import annotations

import copy
import difflib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from r3_rl.errors import CheckpointError, InputError
from r3_rl.policy.bagel.weights import describe_mismatch

BASE_FILE = "base.json"
"""Beside an adapter's weights: which base it belongs to."""
RECIPE_FILE = "recipe.resolved.yaml"

_NAME = "default"  # PEFT's name for the only adapter; it is dropped from the names in the file
_PREFIX = "base_model.model."  # what PEFT puts before a module's own names in the file
_GENERATION_MARK = "_moe_gen"
_LAYERS = r"language_model\.model\.layers\.\d+\."
_TARGETS = {
    "understanding": _LAYERS + r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
    "generation": _LAYERS + r"(self_attn\.[qkvo]_proj_moe_gen|mlp_moe_gen\.(gate|up|down)_proj)",
}
_OF_GENERATION = (_GENERATION_MARK, "vae2llm", "llm2vae", "time_embedder")


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """Size and place of an adapter; the fields of a recipe's section `lora`.

    >>> AdapterSettings(rank=8, alpha=16.0).scale
    2.0
    """

    rank: int = 16
    """>= 1."""
    rank_generation: int | None = None
    """Rank on the generation branch; None takes `rank`."""
    alpha: float = 32.0
    """The adapter is scaled by alpha / rank, on both branches alike."""
    dropout: float = 0.0
    """[0, 1), of the adapter's input, in training mode."""
    branches: str = "both"
    """`understanding`, `generation` or `both`: the experts of the decoder layers that get adapters."""
    extra_targets: tuple[str, ...] = ()
    """Names of further linear layers (`lm_head`, `llm2vae`, `vae2llm`); by default none."""

    @property
    def scale(self) -> float:
        """What B A x is multiplied by."""
        return self.alpha / self.rank

    @property
    def chosen(self) -> tuple[str, ...]:
        """The branches one by one. Raises InputError for a name that is none."""
        if self.branches == "both":
            return tuple(_TARGETS)
        if self.branches not in _TARGETS:
            raise InputError(f"lora.branches: {self.branches!r}", hint=f"choose one of {', '.join(_TARGETS)}, both")
        return (self.branches,)


def attach(module: nn.Module, settings: AdapterSettings, *, seed: int) -> nn.Module:
    """Puts a fresh adapter into the module, freezes everything else, and returns the same module.

    A ~ uniform(+-1 / sqrt(inputs)), B = 0, both float32 whatever the base's type.

    Args:
        module: a BAGEL module of any size, without an adapter.
        settings: size and place.
        seed: of A; the same seed gives the same adapter on every device.

    Raises InputError when a branch or an extra target matches no linear layer, with the nearest names.
    """
    config = _config(module, settings)
    _inject(module, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapted_layers(module).values():
            a = layer.lora_A[_NAME].weight
            bound = 1 / math.sqrt(a.shape[1])
            a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=generator))
            layer.lora_B[_NAME].weight.zero_()
    return module


def adapted_layers(module: nn.Module) -> dict[str, LoraLinear]:
    """The module's LoRA layers by name, in order; empty without an adapter."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLinear)}


def branch_of(name: str) -> str:
    """The branch a parameter or module belongs to, by its name.

    >>> branch_of("layers.0.mlp_moe_gen.up_proj"), branch_of("lm_head")
    ('generation', 'understanding')
    """
    return "generation" if any(mark in name for mark in _OF_GENERATION) else "understanding"


def trainable_parameters(module: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """What an optimiser is to train, by branch and name; works with an adapter and with full weights."""
    found: dict[str, dict[str, nn.Parameter]] = {branch: {} for branch in _TARGETS}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            found[branch_of(name)][name] = parameter
    return found


@contextmanager
def adapter_disabled(module: nn.Module) -> Iterator[None]:
    """Inside, the module is its base: the reference policy. Inside `merged_for_rollout` too.

    The LoRA layers step aside for the linear layers they wrap, so nothing is computed for them and no flag of theirs
    changes. Raises InputError when the module has no adapter.
    """
    slots = _slots(module)
    with _swapped(slots, [slot.layer.get_base_layer() for slot in slots]):
        yield


@contextmanager
def merged_for_rollout(module: nn.Module) -> Iterator[None]:
    """Inside, every adapted layer is one plain linear layer with weight W + scale * B A; afterwards all is as before.

    The base's tensors are never written, so nothing drifts. Costs a second copy of the adapted weights. For float32
    weights only: in bfloat16 the sum would round most of the adapter away, and what is sampled would no longer be the
    policy that is trained. Raises InputError for other types, and when the module has no adapter.
    """
    slots = _slots(module)
    types = {slot.layer.get_base_layer().weight.dtype for slot in slots}
    if types != {torch.float32}:
        raise InputError(
            f"an adapter on {', '.join(sorted(str(t) for t in types))} weights is not merged for rollouts",
            hint="use float32 weights, or roll out with the adapter beside them",
        )
    with _swapped(slots, [_merged_linear(slot.layer) for slot in slots]):
        yield


def merge(module: nn.Module) -> nn.Module:
    """Adds the adapter to the weights for good, W <- W + scale * B A (summed in float32), and removes its layers.

    Raises InputError when the module has no adapter.
    """
    for slot in _slots(module):
        base = slot.layer.get_base_layer()
        merged = _merged_linear(slot.layer)
        base.weight = merged.weight
        slot.put(base)
    del module.peft_config
    return module


def save_adapter(module: nn.Module, folder: str | Path, *, fingerprint: str, recipe_text: str | None = None) -> Path:
    """Writes the adapter in PEFT's layout, its base's fingerprint and, where given, the resolved recipe beside it.

    `peft.PeftModel.from_pretrained(base, folder)` reads it. Every file is written aside and renamed; other files of
    the folder stay. Raises InputError when the module has no adapter.

    Args:
        module: adapted by `attach` or `load_adapter`.
        folder: created when missing.
        fingerprint: of the base's folder, from `bagel.checkpoint.fingerprint`.
        recipe_text: YAML.
    """
    folder = Path(folder)
    tensors = {name: p.detach().cpu().contiguous() for name, p in _stored_parameters(module).items()}
    config = copy.copy(module.peft_config[_NAME])
    config.inference_mode = True  # so that whoever loads it gets frozen weights, as PEFT's own saving does
    aside = folder / ".partial"
    aside.mkdir(parents=True, exist_ok=True)
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
    if not adapted_layers(module):
        if not _matches(module, str(config.target_modules)):
            raise CheckpointError(f"{folder}: no layer of this model is named as the adapter's", hint="another base?")
        _inject(module, config)
    elif different := _differences(config, module.peft_config[_NAME]):
        raise CheckpointError(f"{folder}: not the adapter that this run trains: {different}")
    expected = _stored_parameters(module)
    problems = describe_mismatch(
        {name: tuple(p.shape) for name, p in expected.items()}, {name: tuple(t.shape) for name, t in stored.items()}
    )
    if problems:
        raise CheckpointError(f"{folder}: {len(problems)} tensors do not fit the model:\n  " + "\n  ".join(problems))
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(stored[name])
    return module


def base_fingerprint(folder: str | Path) -> str | None:
    """The fingerprint of the base that the adapter in `folder` remembers; None when PEFT itself wrote the folder."""
    path = Path(folder) / BASE_FILE
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["fingerprint"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: names no base ({error!r})", hint="save the adapter again") from error


@dataclass(frozen=True, kw_only=True, eq=False)
class _Slot:
    """A LoRA layer and where it hangs."""

    parent: nn.Module
    name: str
    layer: LoraLinear

    def put(self, layer: nn.Module) -> None:
        setattr(self.parent, self.name, layer)


class _Merged(nn.Linear):
    """Stands in for a LoRA layer and remembers it, so that the adapter can still be found and switched off."""

    lora: list[LoraLinear]  # in a list, so that the layer's parameters are not counted as this one's


def _slots(module: nn.Module) -> list[_Slot]:
    found = []
    for parent in module.modules():
        if isinstance(parent, LoraLinear):
            continue
        for name, child in parent.named_children():
            layer = child.lora[0] if isinstance(child, _Merged) else child
            if isinstance(layer, LoraLinear):
                found.append(_Slot(parent=parent, name=name, layer=layer))
    if not found:
        raise InputError("the model has no adapter", hint="attach or load one first")
    return found


@contextmanager
def _swapped(slots: list[_Slot], others: list[nn.Linear]) -> Iterator[None]:
    before = [getattr(slot.parent, slot.name) for slot in slots]
    for slot, other in zip(slots, others, strict=True):
        slot.put(other)
    try:
        yield
    finally:
        for slot, layer in zip(slots, before, strict=True):
            slot.put(layer)


@torch.no_grad()
def _merged_linear(layer: LoraLinear) -> _Merged:
    base = layer.get_base_layer()
    merged = _Merged(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
    weight = (base.weight.float() + layer.get_delta_weight(_NAME)).to(base.weight.dtype)
    merged.weight = nn.Parameter(weight, requires_grad=False)
    merged.bias = base.bias
    merged.lora = [layer]
    return merged.train(base.training)


def _stored_parameters(module: nn.Module) -> dict[str, Tensor]:
    """The adapter's parameters under the names they have in the file."""
    return {
        f"{_PREFIX}{slot_name}.{part}.weight": getattr(layer, part)[_NAME].weight
        for slot_name, layer in _named(module).items()
        for part in ("lora_A", "lora_B")
    }


def _named(module: nn.Module) -> dict[str, LoraLinear]:
    names = {parent: name for name, parent in module.named_modules()}
    return {f"{names[slot.parent]}.{slot.name}".lstrip("."): slot.layer for slot in _slots(module)}


def _config(module: nn.Module, settings: AdapterSettings) -> LoraConfig:
    if adapted_layers(module):
        raise InputError("the model has an adapter already", hint="merge it or load the base anew")
    wanted = [_TARGETS[branch] for branch in settings.chosen]
    wanted += [rf"(.*\.)?{re.escape(name)}" for name in settings.extra_targets]
    labels = [f"branch {branch!r}" for branch in settings.chosen] + [repr(name) for name in settings.extra_targets]
    for label, pattern in zip(labels, wanted, strict=True):
        if not _matches(module, pattern):
            raise InputError(f"lora: no linear layer belongs to {label}; {_nearest(module, label)}")
    rank_generation = settings.rank_generation or settings.rank
    unlike = rank_generation != settings.rank
    generation = rf".*({'|'.join(_OF_GENERATION)}).*"
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="|".join(wanted),
        # the scale stays alpha / rank: a larger rank is to give room, not a smaller step
        rank_pattern={generation: rank_generation} if unlike else {},
        alpha_pattern={generation: settings.scale * rank_generation} if unlike else {},
    )


def _inject(module: nn.Module, config: PeftConfig) -> None:
    with torch.random.fork_rng(devices=[]):  # PEFT draws numbers that are overwritten; the caller's stream stays
        inject_adapter_in_model(config, module, adapter_name=_NAME)
    for layer in adapted_layers(module).values():
        layer.train(layer.get_base_layer().training)
        for part in (layer.lora_A, layer.lora_B):
            part.float()


def _matches(module: nn.Module, pattern: str) -> bool:
    return any(isinstance(m, nn.Linear) and re.fullmatch(pattern, name) for name, m in module.named_modules())


def _nearest(module: nn.Module, label: str) -> str:
    linear = sorted({re.sub(r"\.\d+\.", ".*.", name) for name, m in module.named_modules() if isinstance(m, nn.Linear)})
    leaves = {name.rpartition(".")[2]: name for name in linear}
    close = difflib.get_close_matches(label.strip("'"), leaves, n=3, cutoff=0.4)
    shown = [leaves[leaf] for leaf in close] or linear[:6]
    return f"the model's linear layers are named like {', '.join(shown)}" if shown else "the model has no linear layer"


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
    return ", ".join(f"{name} {there} in the file, {here} here" for name, (there, here) in pairs.items() if there != here)
