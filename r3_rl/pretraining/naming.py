"""Naming what is in each square of an image, by linear heads on what a model holds there: lessons before all others.

Released models begin with parts that were pretrained. Words are learned from a cross entropy within hundreds of
examples; what a loss of pixels would teach of the same thing takes a hundred thousand. The heads are thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from r3_rl.errors import InputError
from r3_rl.policy.base import Policy
from r3_rl.pretraining.steps import optimizers
from r3_rl.recipe.pretraining import PretrainSection
from r3_rl.worlds.base import Squares

DECAY = 0.3
"""Last share of the updates, in which the rates fall to 0."""
Lesson = Callable[[], tuple[torch.Tensor, Squares]]
"""() -> what the model holds at each square of the next images [n, squares, width], with gradient; what is there."""


def teach_names(
    policy: Policy, lesson: Lesson, settings: PretrainSection, *, num_steps: int, seed: int
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train in place and yield each step's number, loss and share of right answers: of the squares with something in
    them, those all of whose words are right (`right`), and of all squares, those told to be empty or not (`found`)."""
    policy.module.requires_grad_(True)
    heads: nn.Linear | None = None
    optims: list[torch.optim.Optimizer] = optimizers(policy, settings)
    for step in range(num_steps):
        held, seen = lesson()
        if heads is None:
            heads = _heads(held.shape[-1], seen, seed)
            optims.append(torch.optim.AdamW(heads.parameters(), lr=settings.adam_lr))
            base_rates = [o.param_groups[0]["lr"] for o in optims]
        loss, numbers = _judged(heads(held), seen)
        loss.backward()
        factor = min(1.0, (step + 1) / settings.warmup_steps, max((1 - step / num_steps) / DECAY, 0.01))
        for optim, base in zip(optims, base_rates, strict=True):
            optim.param_groups[0]["lr"] = base * factor
            optim.step()
            optim.zero_grad(set_to_none=True)
        yield step, {"loss": loss.item(), **numbers}


def refuse_misfit(key: str, held: int | None, seen: Squares | None, *, world: str, what: str, setting: str) -> None:
    """Raise InputError unless a model holds as many things of an image as it has squares.

    Args:
        key: of the recipe, with its value.
        held: how many; None for a backbone that cannot be taught so.
        seen: of the world, None where images are not made of squares.
        world: its name.
        what: is held, such as `the tower sees`, with its unit in place of `{}`.
        setting: that makes both numbers equal.
    """
    if held is None:
        raise InputError(f"{key}: this backbone has no {what.split()[1]} that can be trained alone", hint="set it to 0")
    if seen is None:
        raise InputError(f"{key}: images of the world '{world}' are not made of squares", hint="set it to 0")
    if held != seen.labels.shape[1]:
        raise InputError(
            f"{key}: {what.format(held)}, the world has {seen.labels.shape[1]} squares",
            hint=f"set {setting} to the side of a square",
        )


def _heads(width: int, seen: Squares, seed: int) -> nn.Linear:
    """From what is held to the words of all fields, side by side."""
    heads = nn.Linear(width, sum(seen.sizes))
    with torch.no_grad():
        heads.weight.copy_(torch.randn(heads.weight.shape, generator=torch.Generator().manual_seed(seed)) * width**-0.5)
        heads.bias.zero_()
    return heads


def _judged(told: torch.Tensor, seen: Squares) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean cross entropy, summed over fields, and the shares of right answers."""
    labels = torch.from_numpy(seen.labels)
    loss = torch.zeros(())
    right = torch.ones(labels.shape[:2], dtype=torch.bool)
    found = 0.0
    for field, logits in enumerate(told.split(seen.sizes, dim=-1)):
        wanted = labels[..., field]
        loss = loss + F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-1)
        hit = (logits.argmax(-1) == wanted) | (wanted < 0)
        found = found if field else float(hit.float().mean())
        right &= hit
    full = (labels >= 0).all(-1)
    return loss, {"right": float(right[full].float().mean()), "found": found}
