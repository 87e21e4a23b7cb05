"""`r3 train --rehearse`: one step of every kind for real, and what it says about the run. Nothing is left behind.

A rehearsed step is the most that a step can cost: every rollout earns credit, and a refinement is drawn from every
critique, whatever it says. Memory is measured with two and four rollouts on a CPU and carried on to the step's size; on
a GPU the whole step is measured too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from r3_rl.assemble import LoadedPolicy, load_policy
from r3_rl.errors import RunError
from r3_rl.evaluate.build import build_trainer
from r3_rl.evaluate.rehearsal import AGAIN, STAGES, Rehearsal
from r3_rl.evaluate.rehearsed_step import Log, Rollouts, Stage, roll_out
from r3_rl.observe.memory import free_bytes, weighed
from r3_rl.policy.adapters import adapted_layers
from r3_rl.policy.base import Policy
from r3_rl.recipe import Recipe, geometry
from r3_rl.recipe.branching import PHASES
from r3_rl.rollout.rows import Parts
from r3_rl.training.batcher import micro_batches
from r3_rl.training.trainer import R3Trainer
from r3_rl.types import TextSegment

_SMALL = (2, 4)
"""Rollouts of one prompt whose memory is measured first."""
_UPDATES: dict[str, tuple[Stage, ...]] = {
    "update drafts": ("plan", "draft"),
    "update refinements": ("critique", "refinement"),
    "update critiques": ("critique",),
}
_TYPICAL, _PROBED = 1, 0
"""Numbers of steps: the gradients of the two objectives are taken apart in step 0, and in few others."""


def rehearse(recipe: Recipe, *, processes: int = 1) -> Rehearsal:
    """Loads the recipe's policy and scorers, runs one step of every kind and plans the run from it.

    processes: of the run; rehearsed is what one of them does, with its share of the prompts.

    Raises RunError that names the stage where a GPU's memory ran out.
    """
    print(geometry(recipe, processes))
    recipe = _of_one_process(recipe, processes)
    free, begin = free_bytes("cuda" if torch.cuda.is_available() else "cpu"), time.perf_counter()
    loaded = load_policy(recipe.model, world=recipe.data.world)
    with TemporaryDirectory() as folder:
        trainer = build_trainer(recipe, loaded, Path(folder), processes=processes)
        print(f"loaded in {time.perf_counter() - begin:.1f} s")
        log = Log(device=next(loaded.policy.module.parameters()).device)
        try:
            print(trainer.self_check())
            return _rehearsed(recipe, loaded, trainer, log, free)
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"out of memory in stage '{log.stage or 'self-check'}' with {log.beside} rollouts side by side",
                hint="lower rollout.num_prompts, rollout.draft.size or training.token_budget; "
                "rollout.num_parts draws fewer images at once",
            ) from error
        finally:
            trainer.close()


def _of_one_process(recipe: Recipe, processes: int) -> Recipe:
    share = {"num_prompts": recipe.rollout.num_prompts // processes}
    return recipe.model_copy(
        update={
            "training": recipe.training.model_copy(update={"deepspeed": None}),
            "rollout": recipe.rollout.model_copy(update=share),
        }
    )


def _rehearsed(recipe: Recipe, loaded: LoadedPolicy, trainer: R3Trainer, log: Log, free: int) -> Rehearsal:
    names = list(dict.fromkeys(chain.from_iterable(STAGES[p] for p in PHASES[recipe.algorithm.schedule])))
    if recipe.algorithm.schedule in ("full", "episode"):
        names += AGAIN
    resident = _resident(loaded, trainer)
    num_prompts, peers = recipe.rollout.num_prompts, _peers(recipe)
    parts = trainer.schedule.engine.parts
    share = max(map(len, parts.of([i // peers for i in range(num_prompts * peers)]))) / (num_prompts * peers)
    log.shares = {"draft": share, "refinement": share}
    for few in _SMALL:
        roll_out(trainer, trainer.prompts.batch(0)[:1], few, names, log, Parts())
    rows = log.fitting(num_prompts * peers, free - sum(resident.values()))
    if rows < num_prompts * peers:
        num_prompts, peers = (rows // peers, peers) if rows >= peers else (1, rows)
    log.weigh = log.device.type == "cuda"
    rollouts = roll_out(trainer, trainer.prompts.batch(0)[:num_prompts], peers, names, log, parts)
    update_bytes = _update(trainer, rollouts, names, log)
    return Rehearsal(
        device=str(log.device),
        schedule=recipe.algorithm.schedule,
        rounds=recipe.rollout.rounds,
        reason_steps=recipe.algorithm.tree.reason_steps,
        num_steps=recipe.training.max_steps,
        num_prompts=recipe.rollout.num_prompts,
        num_peers=_peers(recipe),
        rows=num_prompts * peers,
        stages={name: log.spent(name) for name in names if name in log.seconds},
        resident=resident,
        caches=_caches(loaded.policy, rollouts, log.shares),
        update_bytes=update_bytes,
        free=free,
        notes=_notes(rollouts, num_prompts * peers, recipe),
    )


def _peers(recipe: Recipe) -> int:
    """Rollouts below a prompt in the largest step, each with a text of its own: the most that they can cost."""
    branch, rounds = recipe.rollout.branch, recipe.rollout.rounds
    return max(branch.rollouts(phase, rounds) for phase in PHASES[recipe.algorithm.schedule])


def _update(trainer: R3Trainer, rollouts: Rollouts, names: Sequence[str], log: Log) -> int:
    """Every kind of update and a step of the optimiser for their time, then the largest micro-batch for its memory."""
    log.weigh, most = False, 0
    weights = {"understanding": trainer.losses.text_loss_weight, "generation": trainer.losses.image_loss_weight}
    for name, stages in _UPDATES.items():
        credits = [c for c in rollouts.credits(stages) if weights[c.objective] > 0]
        if name not in names or not credits:
            continue
        log.run(name, lambda credits=credits: trainer.accumulate(_TYPICAL, credits))  # type: ignore[misc]
        log.run("optimiser", trainer.learner.optimizer.step)
        trainer.learner.zero_grad()
        batches = micro_batches(trainer.policy, credits, trainer.batcher.token_budget)
        log.stage = name
        with weighed(log.device) as taken:
            trainer.accumulate(_PROBED, [*batches[0], *(batches[-1] if len(batches) > 1 else [])])
        trainer.learner.zero_grad()
        most = max(most, taken.peak_bytes)
    # gradients are made by the update and are listed by themselves
    return max(most - _bytes(trainer.balancer.places), 0)


def _resident(loaded: LoadedPolicy, trainer: R3Trainer) -> dict[str, int]:
    """What a run holds all the time. The optimiser's moments are those of AdamW, both in the weights' own type."""
    trainer.learner.prepare(lambda: 0.0)
    module = loaded.policy.module
    trained = [p for p in module.parameters() if p.requires_grad]
    own, adapted = _bytes(trained), bool(adapted_layers(module))
    companions = {name: _bytes(module.parameters()) for name, module in loaded.policy.companions.items()}
    frozen = _bytes(p for p in module.parameters() if not p.requires_grad)
    dtype = str(loaded.dtype).removeprefix("torch.")
    whole = {f"weights ({dtype})": frozen + (0 if adapted else own), **companions}
    if trainer.shards is not None:
        part = _bytes(trainer.shards.masters.values())
        return {
            **whole,
            "reference policy (a part)": _bytes(trainer.shards.base),
            "gradients (a part)": part,
            "master weights (a part)": part,
            "optimiser (AdamW, a part)": 2 * part,
        }
    return {
        **whole,
        **({"adapter": own} if adapted else {"reference policy (a copy)": own}),
        **({"adapter merged into weights": _merged_bytes(module)} if adapted else {}),
        "gradients": own,
        "optimiser (AdamW)": 2 * own,
    }


def _merged_bytes(module: torch.nn.Module) -> int:
    """The second copy of the adapted weights that rollouts and updates in float32 run on (`adapter_merged`)."""
    layers = [layer.get_base_layer().weight for layer in adapted_layers(module).values()]
    return _bytes(weight for weight in layers if weight.dtype == torch.float32)


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _caches(policy: Policy, rollouts: Rollouts, shares: Mapping[str, float]) -> int:
    """Keys and values of the largest stage."""
    held = [policy.cache_bytes(segments) * shares.get(stage, 1.0) for stage, segments in rollouts.segments.items()]
    return round(max(held, default=0.0))


def _notes(rollouts: Rollouts, rows: int, recipe: Recipe) -> tuple[str, ...]:
    lengths = {
        stage: sum(len(s.token_ids) for s in segments if isinstance(s, TextSegment)) / len(segments)
        for stage, segments in rollouts.segments.items()
        if stage in ("plan", "critique") and segments
    }
    notes = [", ".join(f"a {stage} had {length:.0f} tokens" for stage, length in lengths.items()) + " on average"]
    whole = recipe.rollout.num_prompts * _peers(recipe)
    if rows < whole:
        notes.append(f"the {whole} rollouts of a step would not fit: seconds are those of {rows}, scaled up")
    if recipe.rollout.num_parts > 1:
        notes.append("scoring is counted in full, though scorers work while the next part of the images is drawn")
    if recipe.algorithm.answer_share > 0:
        notes.append("steps that train answers are not rehearsed: they write what a critique writes, and draw nothing")
    return tuple(notes if lengths else notes[1:])
