"""The optimiser of a run, AdamW in one of its forms: its groups and rates, and what its steps come to.

AdamW takes steps of the rate's size however small the gradient is, so the weight of a loss does not make a branch move
less; only its rate does. That ends where the gradient's elements come near the epsilon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from r3_rl import ranks
from r3_rl.training.config import R3Config

SAMPLED = 1024
"""Elements of each trained tensor, evenly spaced: a copy of all would be a second model."""


def make_optimizer(
    names: Mapping[nn.Parameter, str], matrices: frozenset[str], args: R3Config
) -> torch.optim.Optimizer:
    """A fresh optimiser.

    Args:
        names: what it steps, with the names of the weights.
        matrices: names of weights that are decayed; vectors (biases, norms) are not.
        args: its kind, rate, betas, epsilon and decay.

    >>> weight = nn.Parameter(torch.ones(2, 2))
    >>> optimizer = make_optimizer({weight: "w"}, frozenset({"w"}), R3Config("out", weight_decay=0.1))
    >>> optimizer.param_groups[0]["weight_decay"]
    0.1
    """
    decayed = [p for p, name in names.items() if name in matrices]
    others = [p for p, name in names.items() if name not in matrices]
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, args.weight_decay), (others, 0.0))
        if parameters
    ]
    kind, options = _kind(args.optim)
    betas = (args.adam_beta1, args.adam_beta2)
    return kind(groups, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon, **options)  # type: ignore[no-any-return]


def _kind(optim: str) -> tuple[Any, dict[str, Any]]:
    if optim == "adamw_torch":
        return torch.optim.AdamW, {}
    if optim == "adamw_torch_8bit":
        from torchao.optim import AdamW8bit

        return AdamW8bit, {}
    from bitsandbytes.optim import AdamW

    return AdamW, {"optim_bits": 8 if "8bit" in optim else 32, "is_paged": "paged" in optim}


def set_rate(optimizer: torch.optim.Optimizer, chosen: Set[nn.Parameter], rate: float) -> None:
    """Moves some parameters of a fresh optimiser into groups that have this rate.

    Args:
        optimizer: before its first step.
        chosen: some of its parameters.
        rate: above 0; a scheduler that is made later starts from it.

    >>> one, other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    >>> optimizer = torch.optim.AdamW([one, other], lr=1.0)
    >>> set_rate(optimizer, {other}, 0.1)
    >>> [(group["lr"], len(group["params"])) for group in optimizer.param_groups]
    [(1.0, 1), (0.1, 1)]
    """
    for group in list(optimizer.param_groups):
        ours = [p for p in group["params"] if p in chosen]
        if ours:
            group["params"] = [p for p in group["params"] if p not in chosen]
            optimizer.add_param_group({**group, "params": ours, "lr": rate})


@cache
def course_of(kind: str, num_warmup_steps: int, num_steps: int) -> Callable[[int], float]:
    """The course of a learning rate over so many steps: step -> its factor, as transformers' schedulers have it.

    >>> [round(course_of("linear", 2, 6)(step), 2) for step in range(6)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    """
    nothing = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    made = get_scheduler(kind, nothing, num_warmup_steps=num_warmup_steps, num_training_steps=num_steps)
    assert isinstance(made, LambdaLR), kind
    (course,) = made.lr_lambdas
    return course  # type: ignore[no-any-return]


def ending_in_time(scheduler: LambdaLR, used: Callable[[], float], *, total_steps: int) -> LambdaLR:
    """The same course of the rate, over the steps or over the time, whichever is further on.

    rate(step) = course(max(step, used() * total_steps)). A run that its clock ends would otherwise stop at a rate that
    was meant for its middle, and what it learned last is wherever such steps leave it.

    Args:
        scheduler: fresh, on its optimiser.
        used: share of the time that has passed, 0 to 1.
        total_steps: of the course.

    >>> optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    >>> falling = LambdaLR(optimizer, lambda step: 1 - step / 10)
    >>> ending_in_time(falling, lambda: 0.4, total_steps=10).get_last_lr()
    [0.6]
    """

    def hurried(course: Callable[[int], float]) -> Callable[[int], float]:
        return lambda step: course(max(step, min(int(used() * total_steps), total_steps)))

    return LambdaLR(scheduler.optimizer, [hurried(course) for course in scheduler.lr_lambdas])


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Of tensors, whole or in shards; those of shards are asked in all processes together.

    >>> total_norm([torch.tensor([3.0]), torch.tensor([4.0])])
    tensor(5.)
    """
    return ranks.whole(torch.nn.utils.get_total_norm(list(tensors)))


def over_epsilon_of(branch_of: Mapping[nn.Parameter, str], epsilon: float) -> dict[str, float]:
    """Compare gradient elements with AdamW's epsilon, branch by branch, and return the smallest ratio.

    sqrt(mean g^2) / epsilon over the elements of a branch; a branch without any gradient is left out.

    Args:
        branch_of: what is trained, with its branch; gradients are accumulated.
        epsilon: added to the root of AdamW's second moment, above 0.

    Returns:
        {"grad/over_epsilon": ratio}, or nothing when no branch has a gradient.

    >>> one, other = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    >>> one.grad, other.grad = torch.full_like(one, 1e-3), torch.full_like(other, 1e-7)
    >>> round(over_epsilon_of({one: "understanding", other: "generation"}, 1e-8)["grad/over_epsilon"], 3)
    10.0
    """
    gradients: dict[str, list[torch.Tensor]] = {}
    for parameter, branch in branch_of.items():
        if parameter.grad is not None:
            gradients.setdefault(branch, []).append(parameter.grad)
    ratios = [
        norm / sum(g.numel() for g in found) ** 0.5 / epsilon
        for found in gradients.values()
        if (norm := float(total_norm(found))) > 0
    ]
    return {"grad/over_epsilon": min(ratios)} if ratios else {}


@contextmanager
def step_size(module: nn.Module) -> Iterator[dict[str, float]]:
    """Compare the trained weights before and after the block.

    |w_after - w_before| / |w_after| over the sampled elements of all trained tensors.

    Args:
        module: of the policy.

    Returns:
        A dictionary with `weights/step_size`, filled when the block ends.

    >>> layer = nn.Linear(2, 2)
    >>> with step_size(layer) as found, torch.no_grad():
    ...     for parameter in layer.parameters():
    ...         parameter *= 2
    >>> found
    {'weights/step_size': 0.5}
    """
    found: dict[str, float] = {}
    before = _sampled(module)
    yield found
    after = _sampled(module)
    size, moved = (float(torch.linalg.vector_norm(t)) for t in (after, after - before))
    found["weights/step_size"] = moved / size if size else 0.0


@torch.no_grad()
def _sampled(module: nn.Module) -> Tensor:
    trained = [p.detach().flatten() for p in module.parameters() if p.requires_grad]
    # in float64, so that the square of a step of 1e-30 is not 0
    return torch.cat([flat[:: -(-flat.numel() // SAMPLED)] for flat in trained]).double()
