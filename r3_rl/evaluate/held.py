"""What a process of a run holds, as far as it can be reckoned without the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from r3_rl.assemble import LoadedPolicy, trainer_arguments
from r3_rl.errors import InputError
from r3_rl.observe.memory import gib
from r3_rl.policy.adapters import adapted_layers
from r3_rl.recipe import Recipe
from r3_rl.recipe.running import zero_stage
from r3_rl.training.config import R3Config
from r3_rl.training.engines import kind_of
from r3_rl.training.trainer import R3Trainer


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Of all of them together.

    >>> num_bytes([torch.zeros(3), torch.zeros(2, dtype=torch.bfloat16)])
    16
    """
    return sum(t.numel() * t.element_size() for t in tensors)


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a process of the run holds."""

    always: dict[str, int]
    """Bytes by name."""
    sampling: int = 0
    """Bytes more in rollouts: weights that are in shards otherwise."""
    updating: int = 0
    """Bytes more in an update: layers on their way, and the gradient of one."""
    sharded: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Where a run is to be."""

    processes: int = 1
    nodes: int = 1


def held_by(recipe: Recipe, loaded: LoadedPolicy, trainer: R3Trainer, where: Machines) -> Held:
    """What a process of a run holds. Moments are those of AdamW, of the weights' type, in shards of float32.

    Args:
        recipe: of the run.
        loaded: its policy, whole.
        trainer: that rehearses it.
        where: it is to be.

    Raises InputError for processes that do not divide over the nodes or the copies of the shards.
    """
    trainer.learner.prepare(lambda: 0.0, trainer.schedule.progressive)
    policy = loaded.policy
    if where.processes % where.nodes:
        raise InputError(f"{where.processes} processes do not divide over {where.nodes} nodes", hint="count them all")
    args, adapted = trainer_arguments(recipe, Path()), trainer.learner.adapted
    coarse = not adapted and loaded.dtype != torch.float32
    kind = kind_of(
        args, processes=where.processes, adapted=adapted, coarse=coarse, can_shard=policy.layered is not None
    )
    zero3 = kind == "deepspeed" and zero_stage(args.deepspeed) == 3
    if not (kind == "fsdp2" or zero3) or policy.layered is None:
        return Held(always=_resident(loaded, trainer))
    if where.processes % args.replicate:
        raise InputError(
            f"{where.processes} processes do not divide into {args.replicate} copies",
            hint="set training.parallel.replicate",
        )
    layers = [[p for p in layer.parameters() if not (adapted and p.requires_grad)] for layer in policy.layered.layers]
    inside = {p for layer in layers for p in layer}
    whole = num_bytes(p for p in policy.module.parameters() if p not in inside)
    count, gathered, parts = sum(p.numel() for p in inside), num_bytes(inside), where.processes // args.replicate
    largest = max(sum(p.numel() for p in layer) for layer in layers)
    always = {
        "weights outside of shards": whole,
        **{name: num_bytes(module.parameters()) for name, module in policy.companions.items()},
    }
    if adapted:
        stepped = num_bytes(p for p in policy.module.parameters() if p.requires_grad)
        always |= {"base (a shard)": gathered // parts, "gradients": stepped, "optimiser (AdamW)": 2 * stepped}
    else:
        kept = bool(args.beta or args.image_beta)
        shard = 4 * count // parts
        always |= {"reference policy (a shard)": gathered // parts if kept else 0, "gradients (a shard)": shard}
        always |= {"master weights (a shard)": shard, "optimiser (AdamW, a shard)": 2 * shard}
    # two layers on their way; the gradient of one, as it is made and as it is sent
    passing = (2 * largest * gathered) // count + (0 if adapted else 8 * largest)
    updating = (gathered if args.keep_gathered else 0) + passing
    reduced = gathered if zero3 else count * (2 if args.reduce_dtype == "bfloat16" else 4)
    notes = _traffic(args, gathered, 0 if adapted else count, 0 if adapted else reduced, where)
    return Held(always=always, sampling=gathered, updating=updating, sharded=True, notes=notes)


def _traffic(args: R3Config, gathered: int, trained: int, reduced: int, where: Machines) -> tuple[str, ...]:
    """What a GPU sends and receives, as sentences; trained: numbers with a gradient in shards, which has `reduced`
    bytes when it is sent."""
    weights = 0 if args.keep_gathered else 2 * gathered
    step = gathered * (3 if trained and (args.beta or args.image_beta) else 1)
    found = [f"each pass of an update sends {gib(weights + reduced)} a GPU, and a step {gib(step)} of weights"]
    if where.nodes > 1 and args.replicate == where.nodes:
        shard = 4 * trained // (where.processes // args.replicate)
        found.append(f"between nodes only gradients travel, {gib(2 * shard)} a GPU and update")
    elif where.nodes > 1:
        found.append(
            f"all of it crosses between nodes; training.parallel.replicate={where.nodes} keeps it inside of them"
        )
    return tuple(found)


def _resident(loaded: LoadedPolicy, trainer: R3Trainer) -> dict[str, int]:
    """What a run that holds everything whole holds all the time."""
    module = loaded.policy.module
    trained = [p for p in module.parameters() if p.requires_grad]
    own, adapted = num_bytes(trained), bool(adapted_layers(module))
    companions = {name: num_bytes(module.parameters()) for name, module in loaded.policy.companions.items()}
    frozen = num_bytes(p for p in module.parameters() if not p.requires_grad)
    dtype = str(loaded.dtype).removeprefix("torch.")
    whole = {f"weights ({dtype})": frozen + (0 if adapted else own), **companions}
    # the second copy of the adapted weights that rollouts and updates in float32 run on (`adapter_merged`)
    bases = (layer.get_base_layer().weight for layer in adapted_layers(module).values())
    merged = [weight for weight in bases if weight.dtype == torch.float32]
    return {
        **whole,
        **({"adapter": own} if adapted else {"reference policy (a copy)": own}),
        **({"adapter merged into weights": num_bytes(merged)} if adapted else {}),
        "gradients": own,
        "optimiser (AdamW)": 2 * own,
    }
