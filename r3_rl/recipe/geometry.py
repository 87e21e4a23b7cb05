"""The sizes of a step, solved before anything loads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from r3_rl.errors import RecipeError
from r3_rl.recipe.branching import STAGES, phases_of
from r3_rl.recipe.tree import Path

if TYPE_CHECKING:
    from r3_rl.recipe import Recipe


def geometry(recipe: Recipe, world_size: int = 1) -> str:
    """Say in one sentence what a step of the recipe is made of.

    Whole groups stay on one process, so `num_prompts` has to divide over the processes, and what is cut into batches or
    averaged is what one process has.

    Args:
        recipe: a checked recipe.
        world_size: number of processes, at least 1.

    Raises:
        RecipeError: the prompts do not divide, or a process has too little; the message names what fits.

    >>> from r3_rl.recipe import Recipe
    >>> recipe = Recipe.model_validate({"version": 1, "rewards": [{"scorer": "shapes"}]})
    >>> for part in geometry(recipe, 2).split(", "):
    ...     print(part)
    8 prompts x 8 plans = 64 rollouts a reason step
    8 images x 8 critiques = 64 rollouts a refine step
    2 processes of 4 prompts
    micro-batches of at most 4096 tokens
    """
    if recipe.pretrain is not None:
        batch = recipe.pretrain.batch
        total = batch.text_to_image + batch.edit + batch.critique + batch.question + batch.plan
        return (
            f"{batch.text_to_image} drawings + {batch.edit} edits + {batch.critique} critiques "
            f"+ {batch.question} questions + {batch.plan} plans = {total} samples a step, {recipe.pretrain.steps} steps"
        )
    if found := [*misfit(recipe, world_size)]:
        raise RecipeError("\n".join(f"{'.'.join(map(str, path))}: {message}" for path, message in found))
    prompts = recipe.rollout.num_prompts
    phases = phases_of(recipe.algorithm.schedule, recipe.algorithm.answer_share)
    taught = recipe.algorithm.supervised
    steps = taught.words() if taught else ", ".join(_step(phase, recipe) for phase in dict.fromkeys(phases))
    processes = "1 process" if world_size == 1 else f"{world_size} processes of {prompts // world_size} prompts"
    return f"{steps}, {processes}, micro-batches of at most {recipe.training.token_budget} tokens"


def misfit(recipe: Recipe, world_size: int) -> Iterator[tuple[Path, str]]:
    """What does not divide over so many processes, and where it is set; pretraining runs in one process."""
    if recipe.pretrain is not None:
        return
    prompts, branch = recipe.rollout.num_prompts, recipe.rollout.branch
    if prompts % world_size:
        below = prompts // world_size * world_size
        nearest = " or ".join(str(number) for number in (below, below + world_size) if number)
        yield (
            ("rollout", "num_prompts"),
            f"{prompts} prompts do not divide over {world_size} processes; use {nearest}",
        )
        return
    parallel = recipe.training.parallel
    if world_size % parallel.replicate:
        yield (
            ("training", "parallel", "replicate"),
            f"{world_size} process{'es' * (world_size > 1)} cannot hold {parallel.replicate} copies of the shards; use "
            "a divisor (a run of several processes is checked with --processes)",
        )
    if parallel.kind == "single" and world_size > 1:
        yield ("training", "parallel", "kind"), f"'single' is one process, and there are {world_size}; use 'auto'"
    if recipe.algorithm.scale_rewards == "batch" and world_size > 1:
        yield (
            ("algorithm", "scale_rewards"),
            f"'batch' would divide by another deviation in each of {world_size} processes; use 'none' or 'group'",
        )
    phases = phases_of(recipe.algorithm.schedule, recipe.algorithm.answer_share)
    rounds = recipe.rollout.rounds
    share = prompts // world_size * max(branch.rollouts(phase, rounds) * nodes_of(phase, recipe) for phase in phases)
    if recipe.rollout.num_parts > share:
        yield (
            ("rollout", "num_parts"),
            f"a process has {share} rollouts, which do not make {recipe.rollout.num_parts} batches; "
            f"use {share} or fewer",
        )


def nodes_of(phase: str, recipe: Recipe) -> int:
    """What a step of this kind starts from, for each prompt of a step."""
    return recipe.rollout.nodes_per_prompt if phase in ("refine", "critique", "answer") else 1


def _step(phase: str, recipe: Recipe) -> str:
    prompts, branch = recipe.rollout.num_prompts * nodes_of(phase, recipe), recipe.rollout.branch
    factors = [(getattr(branch, stage), stage) for stage in STAGES[phase]]
    root = {"reason": "prompt", "full": "prompt", "answer": "question"}.get(phase, "image")
    roots = f"{prompts} {root}{'s' * (prompts > 1)}"
    product = " x ".join([roots, *(f"{count} {name}s" for count, name in factors if count > 1)])
    article = "an" if phase[0] in "ae" else "a"
    if phase == "full" and recipe.rollout.rounds > 1 and branch.rollouts("refine") > 1:
        product += f" in each of {recipe.rollout.rounds} rounds"
    return f"{product} = {prompts * branch.rollouts(phase, recipe.rollout.rounds)} rollouts {article} {phase} step"
