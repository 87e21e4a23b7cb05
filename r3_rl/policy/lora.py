"""How LoRA layers get into a module, how they are found in it, and how they step aside.

PEFT puts a LoRA layer where a linear layer was. Bypassing or merging swaps that layer for a plain linear one and later
puts it back: the base's tensors are never written, so nothing can drift, and no flag of PEFT's changes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from r3_rl.errors import InputError
from r3_rl.policy.backbone import GENERATION, Branch, Branches
from r3_rl.policy.linear import linear
from r3_rl.recipe.learning import EVERY_BRANCH

NAME = "default"
"""PEFT's name for a module's only adapter."""


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
    """[0, 1), of the adapter's input; acts in training mode, that is in updates only."""
    branches: str = EVERY_BRANCH
    """The branch of the backbone that gets adapters, such as `understanding` or `generation`; `both`: all of them."""

    @property
    def scale(self) -> float:
        """What B A x is multiplied by."""
        return self.alpha / self.rank

    def chosen(self, branches: Branches) -> dict[str, Branch]:
        """The branches of a backbone that get adapters. Raises InputError for settings that it cannot have."""
        if problem := self.misfit(branches):
            raise InputError(f"lora.{problem}")
        return dict(branches) if self.branches == EVERY_BRANCH else {self.branches: branches[self.branches]}

    def misfit(self, branches: Branches) -> str:
        """What a backbone of these branches cannot do, with the key of the recipe first; empty if it can do all.

        >>> AdapterSettings(branches="generation").misfit({"shared": Branch(adapted=".*")})
        "branches: 'generation' is not a branch of this backbone; choose one of shared, both"
        """
        if self.branches != EVERY_BRANCH and self.branches not in branches:
            known = ", ".join([*branches, EVERY_BRANCH])
            return f"branches: {self.branches!r} is not a branch of this backbone; choose one of {known}"
        if self.rank_generation is not None and GENERATION not in branches:
            return "rank_generation: this backbone has no generation branch; leave it out"
        return ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Slot:
    """A LoRA layer and where it hangs."""

    parent: nn.Module
    path: str
    """Name within the whole module."""
    layer: LoraLinear

    @property
    def leaf(self) -> str:
        """Name within the parent."""
        return self.path.rpartition(".")[2]

    def put(self, layer: nn.Module) -> None:
        """Hangs another layer in this place."""
        setattr(self.parent, self.leaf, layer)


class MergedLinear(nn.Module):
    """x -> (W + scale * B A) x + b in one product, summed in float32, with the base's own bias.

    Stands in for a LoRA layer and remembers it, so that the adapter is still found, can be switched off, and gets its
    gradient.
    """

    @torch.no_grad()
    def __init__(self, layer: LoraLinear) -> None:
        super().__init__()
        base = layer.get_base_layer()
        a, b = (part[NAME].weight.float() for part in (layer.lora_A, layer.lora_B))
        weight = torch.addmm(base.weight.float(), b, a, alpha=layer.scaling[NAME]).to(base.weight.dtype)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = base.bias
        self.lora = [layer]  # a list, because a module in an attribute would bring its parameters along

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return linear(x, self.weight, self.bias)
        layer = self.lora[0]
        a, b = (part[NAME].weight for part in (layer.lora_A, layer.lora_B))
        return _Merged.apply(x, a, b, self.weight, self.bias, layer.scaling[NAME])  # type: ignore[no-any-return]


class _Merged(torch.autograd.Function):
    """The merged product, whose gradient goes to A [r, in] and B [out, r]: half the passes of a layer beside it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        ctx.save_for_backward(x, a, b, weight)
        ctx.scale = scale
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, weight = ctx.saved_tensors
        grad_x = linear(grad, weight.t()) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None, None, None, None
        grad, x = grad.flatten(0, -2), x.flatten(0, -2)
        of_a = linear(linear(grad, b.t() * ctx.scale).t(), x.t())
        of_b = linear(linear(x, a * ctx.scale).t(), grad.t()).t()
        return grad_x, of_a, of_b, None, None, None


def drops(module: nn.Module) -> bool:
    """Whether the module has an adapter with dropout."""
    layer = first_adapted_layer(module)
    return layer is not None and isinstance(layer.lora_dropout[NAME], nn.Dropout)


def adapted_layers(module: nn.Module) -> dict[str, LoraLinear]:
    """The module's LoRA layers by name, in order; empty without an adapter."""
    return {slot.path: slot.layer for slot in _search(module)}


def first_adapted_layer(module: nn.Module) -> LoraLinear | None:
    """One layer of the adapter, to ask for what all have in common; None without an adapter."""
    return next((slot.layer for slot in _search(module)), None)


def find_slots(module: nn.Module) -> list[Slot]:
    """All places of the adapter. Raises InputError when there is none."""
    found = list(_search(module))
    if not found:
        raise InputError("the model has no adapter", hint="attach or load one first")
    return found


def _search(module: nn.Module) -> Iterator[Slot]:
    for path, parent in module.named_modules():
        for leaf, child in parent.named_children():
            layer = child.lora[0] if isinstance(child, MergedLinear) else child
            if isinstance(layer, LoraLinear):
                yield Slot(parent=parent, path=f"{path}.{leaf}" if path else leaf, layer=layer)


@contextmanager
def swapped(slots: Sequence[Slot], others: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, the other layers hang in these places; afterwards whatever hung there before."""
    before = [getattr(slot.parent, slot.leaf) for slot in slots]
    for slot, other in zip(slots, others, strict=True):
        slot.put(other)
    try:
        yield
    finally:
        for slot, layer in zip(slots, before, strict=True):
            slot.put(layer)


def lora_config(module: nn.Module, settings: AdapterSettings, branches: Branches) -> LoraConfig:
    """PEFT's configuration for these settings on this module. Raises InputError when something matches no layer."""
    if adapted_layers(module):
        raise InputError("the model has an adapter already", hint="merge it or load the base anew")
    chosen = settings.chosen(branches)
    for name, branch in chosen.items():
        label = f"branch {name!r}"
        if not matches(module, branch.adapted):
            raise InputError(f"lora: no linear layer belongs to {label}; {_nearest(module, label)}")
    rank_generation = settings.rank_generation or settings.rank
    unlike = rank_generation != settings.rank
    generation = f".*({'|'.join(map(re.escape, branches[GENERATION].marks))}).*" if unlike else ""
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="|".join(branch.adapted for branch in chosen.values()),
        # the scale stays alpha / rank: a larger rank is to give room, not a smaller step
        rank_pattern={generation: rank_generation} if unlike else {},
        alpha_pattern={generation: settings.scale * rank_generation} if unlike else {},
    )


def inject(module: nn.Module, config: PeftConfig) -> None:
    """Lets PEFT put its layers in, in evaluation mode; their weights are float32 whatever the base's type."""
    with torch.random.fork_rng(devices=[]):  # PEFT draws numbers that are overwritten; the caller's stream stays
        inject_adapter_in_model(config, module, adapter_name=NAME)
    for layer in adapted_layers(module).values():
        layer.eval()
        for part in (layer.lora_A, layer.lora_B):
            part.float()


def remove(module: nn.Module) -> None:
    """Puts the base's own layers back for good."""
    for slot in find_slots(module):
        slot.put(slot.layer.get_base_layer())
    del module.peft_config


def matches(module: nn.Module, pattern: str) -> bool:
    """Whether any linear layer's name is the pattern's."""
    return any(isinstance(m, nn.Linear) and re.fullmatch(pattern, name) for name, m in module.named_modules())


def _nearest(module: nn.Module, label: str) -> str:
    linear = sorted({re.sub(r"\.\d+\.", ".*.", name) for name, m in module.named_modules() if isinstance(m, nn.Linear)})
    leaves = {name.rpartition(".")[2]: name for name in linear}
    close = difflib.get_close_matches(label.strip("'"), leaves, n=3, cutoff=0.4)
    shown = [leaves[leaf] for leaf in close] or linear[:6]
    return f"the model's linear layers are named like {', '.join(shown)}" if shown else "the model has no linear layer"
