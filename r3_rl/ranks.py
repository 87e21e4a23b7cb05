"""Several processes of one run: who this one is, and the little that they tell each other.

Every process rolls out its own prompts; gradients, counts and numbers are added up. In one process every function gives
back what it was handed and starts nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from r3_rl.errors import R3Error

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

Value = TypeVar("Value")

_BUCKET = 1 << 26
"""Elements that are added up at once: a vector of all gradients would be a second copy of them."""


def count() -> int:
    """Processes of the run."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process; 0 writes the files."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def on_this_machine() -> int:
    """Processes of the run on this machine, as its launcher says; without one, all of them."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count())) if count() > 1 else 1


def local_rank() -> int:
    """Number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", 0)) if count() > 1 else 0


def everyone(value: Value) -> list[Value]:
    """The value of every process, by rank. For small things: they are pickled, between processes of one run alone."""
    if count() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def total(*values: float) -> tuple[float, ...]:
    """Each value summed over the processes."""
    return tuple(map(sum, zip(*everyone(values), strict=True)))


def of_first(make: Callable[[], Value]) -> Value:
    """What process 0 makes, in every process; an error of ours there is raised in all."""
    if count() == 1:
        return make()
    import torch.distributed as dist

    made: list[Any] = [None, None]
    if rank() == 0:
        try:
            made[0] = make()
        except R3Error as error:
            error.rank = 0
            made[1] = error
    dist.broadcast_object_list(made, src=0)
    if made[1] is not None:
        raise made[1]
    return made[0]  # type: ignore[no-any-return]


def together(do: Callable[[], None]) -> None:
    """Every process does it; an error of ours in one of them is raised in all, with its rank."""
    error: R3Error | None = None
    try:
        do()
    except R3Error as found:
        error = found
        error.rank = rank() if error.rank is None else error.rank
    found_by = [
        (problem.rank != own, own, problem) for own, problem in enumerate(everyone(error)) if problem is not None
    ]
    if found_by:
        # of one that met with it itself, before those that heard of it
        raise min(found_by, key=lambda found: found[:2])[2]


def share_first(tensor: Tensor) -> None:
    """Replaces the tensor by that of process 0."""
    if count() > 1:
        import torch.distributed as dist

        dist.broadcast(tensor, 0)


def group_of_threads() -> Any:
    """Another group of all processes, in which their threads talk while the run does in its own; None where a single
    process has none. All processes call it. One that dies is an error at once, so that patience may be long."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return None
    return dist.new_group(backend="gloo", timeout=timedelta(hours=4))


def add_up(tensor: Tensor) -> Tensor:
    """The sum over the processes, in place."""
    if count() > 1:
        import torch.distributed as dist

        dist.all_reduce(tensor)
    return tensor


def part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that is in shards, sharing its memory; any other tensor itself."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is in shards, put together. All processes that hold one call it."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def add_gradients(parameters: Sequence[Parameter]) -> None:
    """Replaces each gradient by its sum over the processes.

    A process whose micro-batches did not touch a parameter counts as zeros; a parameter that nobody touched keeps no
    gradient, as in one process. However unlike the processes' micro-batches are, nobody waits for a gradient.
    """
    if count() == 1:
        return
    import torch

    touched = add_up(torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device))
    there = [p for p, number in zip(parameters, touched.tolist(), strict=True) if number]
    for bucket in _buckets(there):
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket])
        for p, part in zip(bucket, add_up(flat).split([p.numel() for p in bucket]), strict=True):
            p.grad = part.view_as(p)


def _buckets(parameters: Sequence[Parameter]) -> list[list[Parameter]]:
    buckets: list[list[Parameter]] = []
    room = 0
    for p in parameters:
        if buckets and room >= p.numel() and buckets[-1][0].dtype == p.dtype:
            buckets[-1].append(p)
        else:
            buckets.append([p])
            room = _BUCKET
        room -= p.numel()
    return buckets
