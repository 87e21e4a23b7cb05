"""What PEFT is told about an adapter, and the one thing that its LoRA layer lacks: a cached sum of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from r3_rl.errors import InputError
from r3_rl.policy.backbone import GENERATION, Branch, Branches
from r3_rl.policy.linear import linear
from r3_rl.recipe.base import default
from r3_rl.recipe.running import EVERY_BRANCH, BalanceSection, LoraSection

Kind = Literal["shared", "split", "routed"]
NAME = "default"
"""PEFT's name for a module's only adapter."""
_DENSE = 2
"""A gradient goes by way of W's shape where going by way of the rank takes so many times its products."""


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """Size and place of an adapter; the fields of a recipe's section `lora`.

    >>> AdapterSettings(rank=8, alpha=16.0).scale
    2.0
    """

    rank: int = default(LoraSection, "rank")
    """>= 1."""
    rank_generation: int | None = default(LoraSection, "rank_generation")
    """Rank on the generation branch; None takes `rank`."""
    alpha: float = default(LoraSection, "alpha")
    """The adapter is scaled by alpha / rank, on both branches alike."""
    dropout: float = default(LoraSection, "dropout")
    """[0, 1), of the adapter's input; acts in training mode, that is in updates only."""
    branches: str = default(LoraSection, "branches")
    """The branch of the backbone that gets adapters, such as `understanding` or `generation`; `both`: all of them."""
    routing: Kind = default(BalanceSection, "routing")  # noqa: RUF009 - a field
    """Whether all tasks share one adapter, each has its own, or all share one and mix their own (`policy.routing`)."""
    gate_temperature: float = default(BalanceSection, "gate_temperature")
    """> 0, of the gates of `routed`."""

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


class AdaptedLinear(LoraLinear):
    """PEFT's layer, W x + scale * B A x, which can also run on the cached sum W + scale * B A.

    Inside `summed` it is one product, and a backward pass leaves its gradient in A [r, in] and B [out, r]. PEFT's own
    `merge` does not serve: it adds into W itself, so A and B get no gradient, and its `unmerge` subtracts again, which
    leaves W changed in its last bits. Here W is never written.
    """

    total: Tensor | None = None
    """The sum, summed in float32, of W's type; None while the adapter stands beside the weights."""

    @property
    def has_dropout(self) -> bool:
        """Whether the adapter's input is dropped in training mode, which needs the adapter beside the weights."""
        return isinstance(self.lora_dropout[NAME], nn.Dropout)

    @contextmanager
    def summed(self) -> Iterator[None]:
        """Inside, the layer runs on the sum of this moment, without dropout; costs a second copy of W."""
        weight, before = self.base_layer.weight, self.total
        a, b = (part[NAME].weight.float() for part in (self.lora_A, self.lora_B))
        with torch.no_grad():
            self.total = torch.addmm(weight.float(), b, a, alpha=self.scaling[NAME]).to(weight.dtype)
        try:
            yield
        finally:
            self.total = before

    def plain_weight(self, task: str) -> Tensor | None:
        """The weight of which the layer is now x -> weight x + `bias` and no more: W where it is switched off, the sum
        while it runs on that, else None. task: whose tokens come, for layers that tell them apart."""
        return self.base_layer.weight if self.disable_adapters else self.total

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters:
            return self.base_layer(x)  # type: ignore[no-any-return]  # without PEFT's looks at what else might be on
        if self.total is None:
            return super().forward(x, *args, **kwargs)
        a, b = (part[NAME].weight for part in (self.lora_A, self.lora_B))
        return self.on_sum(x, a, b, self.total, self.scaling[NAME])

    def on_sum(self, x: Tensor, a: Tensor, b: Tensor, total: Tensor, scale: float) -> Tensor:
        """The product with a sum W + scale * B A, whose gradient goes to A and B."""
        if not torch.is_grad_enabled():
            return linear(x, total, self.base_layer.bias)
        return _Summed.apply(x, a, b, total, self.base_layer.bias, scale)  # type: ignore[no-any-return]


class _Summed(torch.autograd.Function):
    """The product with the sum, whose gradient goes to A and B: half the passes of a layer beside the weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, total: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        ctx.save_for_backward(x, a, b, total)
        ctx.scale = scale
        return linear(x, total, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, total = ctx.saved_tensors
        grad_x = linear(grad, total.t()) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None, None, None, None
        grad, x = grad.flatten(0, -2), x.flatten(0, -2)
        if _DENSE * total.numel() <= 2 * a.shape[0] * sum(total.shape):
            # one product over all tokens instead of four as wide as a large rank
            whole = linear(grad.t(), x.t())
            of_a, of_b = linear(b.t() * ctx.scale, whole.t()), linear(whole, a * ctx.scale)
            return grad_x, of_a, of_b, None, None, None
        of_a = linear(linear(grad, b.t() * ctx.scale).t(), x.t())
        of_b = linear(linear(x, a * ctx.scale).t(), grad.t()).t()
        return grad_x, of_a, of_b, None, None, None


def lora_config(module: nn.Module, settings: AdapterSettings, branches: Branches) -> LoraConfig:
    """PEFT's configuration for these settings on this module. Raises InputError when a branch matches no layer."""
    chosen = settings.chosen(branches)
    names = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    for name, branch in chosen.items():
        if not any(re.fullmatch(branch.adapted, own) for own in names):
            known = ", ".join(sorted({re.sub(r"\.\d+\.", ".*.", own) for own in names})[:6])
            there = f"the model's linear layers are named like {known}" if known else "the model has no linear layer"
            raise InputError(f"lora: no linear layer belongs to branch {name!r}; {there}")
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
