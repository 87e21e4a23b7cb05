"""Which engine holds and steps what is trained: `training.parallel.kind` of a recipe."""

from __future__ import annotations

from typing import Any

import torch

from r3_rl import ranks
from r3_rl.errors import InputError
from r3_rl.policy.adapters import adapted_layers
from r3_rl.policy.base import Policy
from r3_rl.recipe.running import zero_stage
from r3_rl.training.config import R3Config
from r3_rl.training.parallel import Learner


def kind_of(args: R3Config, *, processes: int, adapted: bool, coarse: bool, can_shard: bool = True) -> str:
    """Return the engine that `auto` stands for, or the one that is named.

    Args:
        args: of the run.
        processes: of the run.
        adapted: whether an adapter is trained, and not full weights.
        coarse: whether what is trained has fewer than 32 bits.
        can_shard: whether the backbone offers its layers, and full weights are trained in them only.

    >>> kind_of(R3Config("out"), processes=8, adapted=True, coarse=False)
    'ddp'
    >>> kind_of(R3Config("out"), processes=8, adapted=False, coarse=True)
    'fsdp2'
    """
    if args.parallel != "auto":
        return args.parallel
    if args.deepspeed is not None:
        return "deepspeed"
    if args.replicate > 1 or args.keep_gathered or (can_shard and not adapted and (processes > 1 or coarse)):
        return "fsdp2"
    return "ddp" if processes > 1 else "single"


def trained_outside(policy: Policy) -> list[str]:
    """Return the names of what is trained outside of the layers that a backbone offers."""
    inside = {p for layer in policy.layered.layers for p in layer.parameters()} if policy.layered else set()
    return [n for n, p in policy.module.named_parameters() if p.requires_grad and p not in inside]


def learner_of(policy: Policy, args: R3Config, optimizers: tuple[Any, Any] = (None, None)) -> Learner:
    """Return what holds and steps the trained weights of a policy.

    Args:
        policy: what is trained of it requires gradient; without an adapter its base is remembered.
        args: of the run.
        optimizers: an optimiser and a schedule of the caller's, of the policy's own parameters; None makes those of
            `args`.

    Raises InputError for an engine that these weights or this number of processes cannot have.
    """
    adapted, processes = bool(adapted_layers(policy.module)), ranks.count()
    coarse = any(torch.finfo(p.dtype).bits < 32 for p in policy.module.parameters() if p.requires_grad)
    can_shard = policy.layered is not None and (adapted or not trained_outside(policy))
    kind = kind_of(args, processes=processes, adapted=adapted, coarse=coarse, can_shard=can_shard)
    if kind == "single" and processes > 1:
        raise InputError(
            f"training.parallel.kind is 'single', and there are {processes} processes", hint="use auto, ddp or fsdp2"
        )
    stage = zero_stage(args.deepspeed) if kind == "deepspeed" else None
    if stage == 3 and adapted:
        raise InputError("ZeRO 3 shards full weights", hint="for an adapter on a base in shards use fsdp2")
    if kind == "fsdp2" or stage == 3:
        name = "fsdp2" if stage is None else "ZeRO 3"
        if optimizers != (None, None):
            raise InputError(f"{name} steps shards, which an optimiser of your own does not know", hint="use ddp")
        if policy.layered is None:
            raise InputError("this backbone's layers cannot be sharded", hint="use training.parallel.kind: ddp")
        if not adapted and (outside := trained_outside(policy)):
            raise InputError(f"{name} shards the decoder's layers, and more is trained: {outside[0]}", hint="use ddp")
        if stage == 3:
            from r3_rl.training.zero3 import ZeRO3Learner  # loads what only it needs

            return ZeRO3Learner(policy, policy.layered, args)
        from r3_rl.training.fsdp import FSDPLearner

        return FSDPLearner(policy, policy.layered, args)
    if not adapted:
        policy.remember_base(on_host=not (args.beta or args.image_beta))
    if kind == "deepspeed":
        from r3_rl.training.zero import DeepSpeedLearner

        return DeepSpeedLearner(policy, args)
    return Learner(policy, args, optimizers)
