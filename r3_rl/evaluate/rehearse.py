"""`r3 train --rehearse`: one step of every kind for real, and what it says about the run. Nothing is left behind.

A rehearsed step is the most that a step can cost: every rollout earns credit, and a refinement is drawn from every
critique, whatever it says. Memory is measured with two and four rollouts on a CPU and carried on to the step's size; on
a GPU the whole step is measured too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from r3_rl.assemble import LoadedPolicy, load_policy
from r3_rl.errors import RunError
from r3_rl.evaluate.build import build_trainer
from r3_rl.evaluate.held import Held, Machines, held_by, num_bytes
from r3_rl.evaluate.rehearsal import AGAIN, STAGES, Meter, Rehearsal
from r3_rl.modalities import Segment, TextSegment
from r3_rl.nodes import Node, always_edits
from r3_rl.observe.memory import free_bytes, weighed
from r3_rl.policy.adapters import adapter_merged
from r3_rl.recipe import Recipe, geometry
from r3_rl.recipe.branching import PHASES
from r3_rl.recipe.geometry import nodes_of
from r3_rl.recipe.running import ParallelSection
from r3_rl.rollout.engine import Engine
from r3_rl.rollout.rows import Parts, score_batch
from r3_rl.training.batcher import micro_batches
from r3_rl.training.credit import Credit
from r3_rl.training.trainer import R3Trainer
from r3_rl.types import Prompt

_SMALL = (2, 4)
"""Rollouts of one prompt whose memory is measured first."""
_UPDATES: dict[str, tuple[str, ...]] = {
    "update drafts": ("plan", "draft"),
    "update refinements": ("critique", "refinement"),
    "update critiques": ("critique",),
}
_TYPICAL, _PROBED = 1, 0
"""Numbers of steps: the gradients of the two objectives are taken apart in step 0, and in few others."""


def rehearse(recipe: Recipe, *, processes: int = 1, nodes: int = 1) -> Rehearsal:
    """Loads the recipe's policy and scorers, runs one step of every kind and plans the run from it.

    processes, nodes: of the run; rehearsed is what one process does, with its share of the prompts. Shards are
    reckoned, not made: the rehearsal holds its weights whole, and steps nothing where they would be in shards.

    Raises RunError that names the stage where a GPU's memory ran out.
    """
    print(geometry(recipe, processes))
    recipe = _share(recipe, processes)
    free, begin = free_bytes("cuda" if torch.cuda.is_available() else "cpu"), time.perf_counter()
    loaded = load_policy(recipe.model, world=recipe.data.world)
    with TemporaryDirectory() as folder:
        trainer = build_trainer(_in_one_process(recipe), loaded, Path(folder))
        if not recipe.lora.enabled:
            loaded.policy.remember_base(on_host=True)  # nothing is trained: a second copy would be for nothing
        print(f"loaded in {time.perf_counter() - begin:.1f} s")
        meter = Meter(device=next(loaded.policy.module.parameters()).device)
        try:
            print(trainer.self_check())
            return _rehearsed(
                recipe,
                loaded,
                trainer,
                meter,
                free,
                held_by(recipe, loaded, trainer, Machines(processes=processes, nodes=nodes)),
            )
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"out of memory in stage '{meter.stage or 'self-check'}' with {meter.beside} rollouts side by side",
                hint="lower rollout.num_prompts, rollout.draft.size or training.token_budget; "
                "rollout.num_parts draws fewer images at once",
            ) from error
        finally:
            trainer.close()


def _share(recipe: Recipe, processes: int) -> Recipe:
    share = {"num_prompts": recipe.rollout.num_prompts // processes}
    return recipe.model_copy(update={"rollout": recipe.rollout.model_copy(update=share)})


def _in_one_process(recipe: Recipe) -> Recipe:
    whole = {"deepspeed": None, "parallel": ParallelSection(kind="single")}
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=whole)})


def _rehearsed(
    recipe: Recipe, loaded: LoadedPolicy, trainer: R3Trainer, meter: Meter, free: int, held: Held
) -> Rehearsal:
    schedule, branch, rounds = recipe.algorithm.schedule, recipe.rollout.branch, recipe.rollout.rounds
    names = list(dict.fromkeys(chain.from_iterable(STAGES[phase] for phase in PHASES[schedule])))
    names += AGAIN if schedule in ("full", "episode") else ()
    # below a prompt in the largest step, each with a text of its own: the most that they can cost
    peers = num_peers = max(branch.rollouts(phase, rounds) * nodes_of(phase, recipe) for phase in PHASES[schedule])
    num_prompts, whole = recipe.rollout.num_prompts, recipe.rollout.num_prompts * peers
    parts = trainer.schedule.engine.parts
    share = max(map(len, parts.of([i // peers for i in range(whole)]))) / whole
    meter.shares = {"draft": share, "refinement": share}
    for few in _SMALL:
        _roll_out(trainer, trainer.prompts.batch(0)[:1], few, names, meter, Parts())
    rows = meter.fitting(whole, free - sum(held.always.values()) - held.sampling)
    if rows < whole:
        num_prompts, peers = (rows // peers, peers) if rows >= peers else (1, rows)
    meter.weigh = meter.device.type == "cuda"
    segments = _roll_out(trainer, trainer.prompts.batch(0)[:num_prompts], peers, names, meter, parts)
    update_bytes = _update(trainer, segments, names, meter, steps=not held.sharded)
    caches = [loaded.policy.cache_bytes(s) * meter.shares.get(stage, 1.0) for stage, s in segments.items()]
    return Rehearsal(
        device=str(meter.device),
        schedule=schedule,
        rounds=rounds,
        turn=(recipe.algorithm.tree.reason_steps, recipe.algorithm.tree.reflect_steps),
        num_iterations=recipe.algorithm.num_iterations,
        num_steps=recipe.training.max_steps,
        num_prompts=recipe.rollout.num_prompts,
        num_peers=num_peers,
        rows=num_prompts * peers,
        stages={name: meter.spent(name) for name in names if name in meter.seconds},
        resident=held.always,
        sampling=held.sampling,
        updating=held.updating,
        caches=round(max(caches, default=0.0)),
        update_bytes=update_bytes,
        free=free,
        notes=(*_notes(segments, num_prompts * peers, whole, recipe), *held.notes),
    )


def _roll_out(
    trainer: R3Trainer, prompts: Sequence[Prompt], peers: int, names: Sequence[str], meter: Meter, parts: Parts
) -> dict[str, list[Segment]]:
    """What is written and drawn, by stage: drafts of every prompt; then critiques and refinements that branch from each
    prompt's first draft. Images are drawn in `parts`, and scored when all are there."""
    meter.seconds.clear()
    seed, rows = trainer.args.seed, len(prompts) * peers
    engine = Engine(policy=trainer.policy, settings=trainer.loop, parts=parts, watch=meter)
    with torch.no_grad(), adapter_merged(trainer.policy.module):
        drafts = engine.drafts(prompts, seed=seed, plans=peers, progress=0.0)
        with meter("score drafts", rows):
            trainer.panel.score(score_batch(drafts))
        made: list[Node] = [*(draft.above for draft in drafts), *drafts]
        if "critique" in names:
            looked_at = [draft.given() for draft in drafts[::peers]]
            critiques = engine.critiques(looked_at, seed=seed, each=peers)
            made += critiques
        if "refinement" in names:
            drawn = engine.refinements([always_edits(critique) for critique in critiques], seed=seed, progress=0.0)
            refined = [node for node in drawn if node is not None]
            with meter("score refinements", rows):
                trainer.panel.score(score_batch(refined))
            made += refined
    segments: dict[str, list[Segment]] = {}
    for node in made:
        if node.sample is not None:
            segments.setdefault(node.stage, []).append(node.sample)
    return segments


def _update(
    trainer: R3Trainer, segments: dict[str, list[Segment]], names: Sequence[str], meter: Meter, *, steps: bool
) -> int:
    """Every kind of update and (steps) a step of the optimiser for their time, then the largest micro-batch for its
    memory."""
    meter.weigh, most = False, 0
    for name, stages in _UPDATES.items():
        made = [(stage, i, segment) for stage in stages for i, segment in enumerate(segments.get(stage, ()))]
        # advantages of both signs
        credits = [Credit(segment=segment, advantage=1.0 if i % 2 else -1.0, stage=stage) for stage, i, segment in made]
        credits = [credit for credit in credits if trainer.updater.losses[credit.objective].weight > 0]
        if name not in names or not credits:
            continue
        with meter(name, len(made)):
            trainer.updater.accumulate(_TYPICAL, credits)
        if steps:
            with meter("optimiser", len(made)):
                trainer.learner.optimizer.step()
        trainer.learner.zero_grad()
        batches = micro_batches(trainer.policy, credits, trainer.updater.batcher.token_budget)
        meter.stage = name
        with weighed(meter.device) as taken:
            trainer.updater.accumulate(_PROBED, [*batches[0], *(batches[-1] if len(batches) > 1 else [])])
        trainer.learner.zero_grad()
        most = max(most, taken.peak_bytes)
    # gradients are made by the update and are listed by themselves
    return max(most - num_bytes(trainer.updater.balancer.places), 0)


def _notes(segments: dict[str, list[Segment]], rows: int, whole: int, recipe: Recipe) -> tuple[str, ...]:
    lengths = {
        stage: sum(len(s.token_ids) for s in segments[stage] if isinstance(s, TextSegment)) / len(segments[stage])
        for stage in ("plan", "critique")
        if segments.get(stage)
    }
    notes = [", ".join(f"a {stage} had {length:.0f} tokens" for stage, length in lengths.items()) + " on average"]
    if rows < whole:
        notes.append(f"the {whole} rollouts of a step would not fit: seconds are those of {rows}, scaled up")
    if recipe.rollout.num_parts > 1:
        notes.append("scoring is counted in full, though scorers work while the next part of the images is drawn")
    if recipe.algorithm.answer_share > 0:
        notes.append("steps that train answers are not rehearsed: they write what a critique writes, and draw nothing")
    return tuple(notes if lengths else notes[1:])
