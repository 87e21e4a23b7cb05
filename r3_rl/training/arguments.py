"""What R3Trainer is handed -> what it works with: panel, prompts, schedule."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from importlib.util import find_spec
from os import PathLike
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer
from torch import nn

from r3_rl import ranks
from r3_rl.balance.progressive import Progressive
from r3_rl.errors import DataError, InputError, MissingPackageError
from r3_rl.policy.adapters import AdapterSettings
from r3_rl.policy.base import Policy
from r3_rl.policy.words import said_unknown
from r3_rl.rollout.engine import Engine, Watch
from r3_rl.rollout.pool import NodePool
from r3_rl.rollout.prompts import PromptStream
from r3_rl.rollout.rows import Parts
from r3_rl.scoring.panel import Panel, ScorerSpec
from r3_rl.scoring.registry import load_scorer, short_name
from r3_rl.stages.settings import LoopSettings
from r3_rl.training.config import R3Config
from r3_rl.training.credit import CreditSettings
from r3_rl.training.from_trl import prompts_of
from r3_rl.training.schedules import AboutNodes, AskedNodes, Schedule, SyntheticNodes
from r3_rl.training.teaching import Examples, Teacher
from r3_rl.training.update import LossSettings

Settings = TypeVar("Settings", CreditSettings, LossSettings)
Scorer = Callable[..., Any]
"""Called with keywords, `(prompts, completions, images, **columns) -> scores`; may be asynchronous."""


def refuse(model: Any, args: R3Config, eval_dataset: Any, lora: AdapterSettings | None) -> None:
    """Raises InputError for a model that is no policy, and for arguments that contradict each other."""
    if not hasattr(model, "spec"):  # a wrapped module has a `module` too
        raise InputError(
            f"{model!r:.60} as model" if isinstance(model, str | PathLike) else f"{type(model).__name__} as model",
            hint="give a policy: Refiner.from_pretrained(FOLDER).policy, and its .loop as processing_class",
        )
    if eval_dataset is not None:
        raise InputError("R3Trainer takes no eval_dataset", hint="measure the loop with r3_rl.evaluate")
    trained = {"texts": args.text_loss_weight > 0, "images": args.image_loss_weight > 0}
    for problem in args.branch.alone(args.schedule, answer_share=args.answer_share, **trained):
        raise InputError(f"branch.{problem.path}: {problem.message}")
    if args.save_strategy == "steps" and args.save_steps % args.num_iterations:
        raise InputError(
            f"save_steps {args.save_steps} falls between the {args.num_iterations} updates on the same rollouts",
            hint="make it a multiple of num_iterations",
        )
    needed = {"adamw_torch": "torch", "adamw_torch_8bit": "torchao"}.get(args.optim, "bitsandbytes")
    if find_spec(needed) is None:
        raise MissingPackageError(f"optim '{args.optim}' needs {needed}", hint=f"pip install {needed}")
    if args.num_prompts % ranks.count():
        raise InputError(
            f"{args.num_prompts} prompts do not divide over {ranks.count()} processes",
            hint="make num_prompts a multiple: peers are compared inside a process",
        )
    if args.scale_rewards == "batch" and ranks.count() > 1:
        raise InputError(
            "scale_rewards 'batch' would divide by another deviation in every process", hint="use none or group"
        )
    if lora is not None and lora.branches == "generation" and args.text_loss_weight > 0:
        raise InputError(
            "adapters on the generation branch alone learn nothing from texts", hint="set text_loss_weight to 0"
        )


def refuse_training(stepped: Iterable[nn.Parameter], args: R3Config) -> None:
    """Raises InputError where what the optimiser steps has 16 bits: most steps are too small for them and would vanish.
    DeepSpeed and shards keep float32 copies; adapters are float32 anyway."""
    types = {p.dtype for p in stepped}
    coarse = sorted(str(dtype).removeprefix("torch.") for dtype in types if torch.finfo(dtype).bits < 32)
    if coarse and not args.deepspeed:
        raise InputError(
            f"weights in {', '.join(coarse)} are to be trained: small steps would vanish",
            hint="load the model in float32, train an adapter (peft_config), or use training.parallel.kind: fsdp2",
        )


def panel_of(scorers: str | Scorer | Sequence[str | Scorer], args: R3Config) -> Panel:
    """The panel of one or several scorers or names of scorers, of weight 1 unless said.

    Raises InputError for another number of weights and for a name that no scorer has.
    """
    listed = list(scorers) if isinstance(scorers, Sequence) and not isinstance(scorers, str) else [scorers]
    weights = args.reward_weights or [1.0] * len(listed)
    if len(weights) != len(listed):
        raise InputError(f"{len(weights)} reward_weights for {len(listed)} reward_funcs", hint="give one each")
    specs = [
        ScorerSpec(name=short_name(scorer), scorer=load_scorer(scorer), weight=weight)
        if isinstance(scorer, str)
        else ScorerSpec(name=getattr(scorer, "__name__", type(scorer).__name__), scorer=scorer, weight=weight)
        for scorer, weight in zip(listed, weights, strict=True)
    ]
    return Panel(
        specs,
        aggregate=args.multi_objective_aggregation,  # type: ignore[arg-type]
        max_failed_fraction=args.max_failed_fraction,
    )


def free_layers(policy: Policy) -> None:
    """Make the layers that a recipe trains with full weights the only ones that have a gradient."""
    for name, parameter in policy.module.named_parameters():
        parameter.requires_grad_(re.fullmatch(policy.spec.layers, name) is not None)


def stream_of(prompts: Any, args: R3Config, tokenizer: Tokenizer) -> PromptStream:
    """The stream of a list of prompts or of a data set, in an order that follows from `data_seed`, else from `seed`.

    Raises DataError for a row that is no prompt, or whose words the model cannot read.
    """
    if isinstance(prompts, PromptStream):
        return prompts
    found = prompts_of(prompts)
    for number, prompt in enumerate(found):
        if unknown := said_unknown(tokenizer, prompt.text):
            raise DataError(f"row {number}: {unknown}", hint="use its words, or another model")
    seed = args.seed if args.data_seed is None else args.data_seed
    return PromptStream(found, num_prompts=args.num_prompts, seed=seed)


def schedule_of(
    policy: Policy,
    panel: Panel,
    loop: LoopSettings,
    args: R3Config,
    synthetic: SyntheticNodes | None,
    questions: AskedNodes | None,
    about: AboutNodes | None,
    *,
    watch: Watch,
) -> Schedule:
    """What collects the rollouts of a step and credits them. Raises InputError where nobody asks questions."""
    if args.answer_own_share > 0 and about is None:
        raise InputError("answer_own_share without anybody who asks about images", hint="set it to 0")
    if args.answer_share > 0 and questions is None:
        raise InputError("answer_share without questions", hint="pass questions, or set it to 0")
    share = args.num_prompts // ranks.count()
    engine = Engine(
        policy=policy,
        settings=loop,
        submit=panel.submit,
        parts=Parts(count=args.num_parts, whole_groups=panel.compares_peers),
        watch=watch,
        # whole groups stay in a process, and what follows from a row's place among all is the same for any number
        first_group=ranks.rank() * share,
    )
    return Schedule(
        name=args.schedule,
        engine=engine,
        branch=args.branch,
        rewards=panel.rewards,
        credit=settings_of(CreditSettings, args),
        pool=NodePool(
            choice=args.node_choice,
            perfect_ratio=args.perfect_ratio,
            max_groups=4 * share * args.nodes_per_prompt,
            max_depth=args.depth,
        ),
        rounds=args.rounds,
        reason_steps=args.reason_steps,
        reflect_steps=args.reflect_steps,
        nodes_per_prompt=args.nodes_per_prompt,
        synthetic=synthetic,
        synthetic_fraction=args.synthetic_fraction,
        questions=questions,
        answer_share=args.answer_share,
        about=about,
        own_share=args.answer_own_share,
        progressive=Progressive(
            apart=args.apart_fraction,
            ramp=args.ramp_fraction,
            plateau_steps=args.plateau_steps,
            plateau_gain=args.plateau_gain,
        ),
    )


def teacher_of(args: R3Config, examples: Examples | None) -> Teacher | None:
    """What takes the schedule's place in a supervised run; None for all others. Raises InputError without examples."""
    if args.supervised is None:
        return None
    if examples is None:
        raise InputError("supervised steps without examples", hint="pass examples, or set supervised to None")
    return Teacher(
        examples=examples,
        counts=args.supervised,
        text_weight=args.text_loss_weight,
        image_weight=args.image_loss_weight,
        seed=args.seed,
    )


def settings_of(kind: type[Settings], args: R3Config) -> Settings:
    """Settings of an owner whose names are those of the arguments.

    >>> settings_of(CreditSettings, R3Config("out", gain="repair")).gain
    'repair'
    """
    return kind(**{f.name: getattr(args, f.name) for f in fields(kind)})
