"""Who is to blame for a wrong image of a world: the text that was drawn from, or the painter?

Shapes: n prompts or images; values are in the order of their set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from r3_rl.evaluate.measured import Values, chunks, right
from r3_rl.evaluate.reflection import Refined
from r3_rl.modalities import DrawnSegment, ImagePiece, ImageSegment, TextPiece
from r3_rl.policy.base import Policy
from r3_rl.rollout.rows import row_seeds
from r3_rl.stages import DRAFT, REFINEMENT
from r3_rl.stages.settings import LoopSettings
from r3_rl.types import Prompt, Trajectory
from r3_rl.worlds.base import Edited, World
from r3_rl.worlds.sets import Drawn, verdicts


def plan_is_right(world: World[Any], text: str, prompt: Prompt) -> bool:
    """Whether a plan's text satisfies the prompt exactly; a malformed one does not.

    >>> from r3_rl.worlds.base import find_world
    >>> world = find_world()
    >>> prompt = world.read_prompt("a red circle")
    >>> [plan_is_right(world, text, prompt) for text in ("<think> red circle top left </think>", "<think> red circle")]
    [True, False]
    """
    scene = world.read_plan(text)
    return scene is not None and bool(right(world.judge(scene, prompt)))


def plan_and_painter(world: World[Any], trajectories: Sequence[Trajectory]) -> Values:
    """`plan_right`, and `image_right_given_plan` of those whose plan is right; nothing where plans are off."""
    drafts = [(t.prompt, t.rounds[0]) for t in trajectories if t.rounds[0].plan is not None]
    plans = [float(plan_is_right(world, r.plan.text, prompt)) for prompt, r in drafts if r.plan is not None]
    images = [right(r.verdict) for (_, r), plan in zip(drafts, plans, strict=True) if plan]
    return {"plan_right": plans, "image_right_given_plan": images}


def measure_true_plans(
    world: World[Any], policy: Policy, prompts: Sequence[Prompt], settings: LoopSettings, *, seed: int
) -> Values:
    """Draw each prompt from a right plan given as text: `true_plan_drawn`, the same to the held-out inspector, and how
    rough the right images are. Nothing where plans are off."""
    if settings.plan is None:
        return {}
    rng = np.random.default_rng(seed)
    plans = [world.plan_text(world.scene(prompt, rng)) for prompt in prompts]
    images: list[torch.Tensor] = []
    for part in chunks(len(prompts)):
        these = prompts[part]
        contexts = [
            (*settings.protocol.reason_context(prompt), TextPiece(text=plan))
            for prompt, plan in zip(these, plans[part], strict=True)
        ]
        how = replace(settings.draft.drawing, task=DRAFT.name)
        drawn = policy.draw(contexts, [how] * len(these), row_seeds(seed, part.start, len(these)))
        images += _images(drawn)
    hits = [right(verdict) for verdict in verdicts(world, images, prompts)]
    return {
        "true_plan_drawn": hits,
        "held_out_true_plan": held_out_rights(world, images, prompts),
        "true_plan_roughness": roughness(world, [image for image, hit in zip(images, hits, strict=True) if hit]),
    }


def roughness(world: World[Any], images: Sequence[torch.Tensor]) -> list[float]:
    """Mean distance of right images' pixels to a clean drawing of what they show, in levels of 255. No verdict looks at
    it, so a painter that is rewarded for verdicts may let it grow.

    Args:
        images: [n] of float32 [3, H, W] in [0, 1], without a malformed object, which no world can draw again.

    >>> from r3_rl.worlds.base import find_world
    >>> world, rng = find_world(), np.random.default_rng(0)
    >>> clean = torch.from_numpy(world.draw([world.scene(world.read_prompt("a red circle"), rng)])[0])
    >>> noise = torch.from_numpy(rng.normal(0, 0.02, clean.shape).astype(np.float32))
    >>> smooth, rough = roughness(world, [clean, clean + noise])
    >>> smooth < 1 < 3 < rough < 5
    True
    """
    if not images:
        return []
    pixels = np.stack([image.numpy() for image in images])
    away = np.abs(pixels - world.draw(world.inspect(pixels)))
    return [float(255 * mean) for mean in away.mean(axis=(1, 2, 3))]


def held_out_rights(world: World[Any], images: Sequence[torch.Tensor], prompts: Sequence[Prompt]) -> list[float]:
    """1 for an image that is right to the world's held-out inspector, else 0; empty if the world has none.

    Args:
        images: [n] of float32 [3, H, W] in [0, 1].
        prompts: [n] what each was drawn for.
    """
    seen = world.inspect_again(np.stack([image.numpy() for image in images])) if images else []
    return [right(world.judge(scene, prompt)) for scene, prompt in zip(seen, prompts, strict=bool(seen))]


def held_out_loop(world: World[Any], trajectories: Sequence[Trajectory]) -> Values:
    """`held_out_draft` and `held_out_final`: first and last images to the held-out inspector."""
    prompts = [t.prompt for t in trajectories]
    return {
        f"held_out_{name}": held_out_rights(world, [t.rounds[place].image.image for t in trajectories], prompts)
        for name, place in (("draft", 0), ("final", -1))
    }


def measure_edits(
    world: World[Any], policy: Policy, edits: Sequence[Edited], settings: LoopSettings, *, seed: int
) -> list[float]:
    """True instructions on images of the world: 1 if the drawn image shows what the target shows. Empty for a backbone
    that does not edit."""
    hits: list[float] = []
    if policy.spec.refines != "edit":
        return hits
    for part in chunks(len(edits)):
        these = edits[part]
        contexts = [
            (ImagePiece(image=torch.from_numpy(e.source), use="edit"), TextPiece(text=e.instruction)) for e in these
        ]
        how = replace(settings.refine.drawing, task=REFINEMENT.name)
        drawn = policy.draw(contexts, [how] * len(these), row_seeds(seed, part.start, len(these)))
        hits += _show_the_same(world, _images(drawn), np.stack([e.target for e in these]))
    return hits


def measure_instructions(world: World[Any], drafts: Sequence[Drawn], refined: Sequence[Refined]) -> Values:
    """What critiques of synthetic wrong drafts ask for, and whether it is done.

    `instruction_useful`: followed exactly, the instruction would leave fewer edits to the prompt. `edit_carried_out`:
    the refinement shows exactly what the instruction says; only of drafts whose instruction fits what they show.

    Args:
        drafts: [n] wrong ones that the world drew.
        refined: [n] what the policy made of them.
    """
    after = [world.follow(draft.scene, r.critique.instruction) for draft, r in zip(drafts, refined, strict=True)]
    useful = [
        float(
            scene is not None
            and world.edits_needed(scene, draft.prompt) < world.edits_needed(draft.scene, draft.prompt)
        )
        for scene, draft in zip(after, drafts, strict=True)
    ]
    asked = [
        (r.image, scene) for r, scene in zip(refined, after, strict=True) if r.image is not None and scene is not None
    ]
    carried: list[float] = []
    if asked:
        carried = _show_the_same(world, [image for image, _ in asked], world.draw([scene for _, scene in asked]))
    return {"instruction_useful": useful, "edit_carried_out": carried}


def _images(drawn: Sequence[DrawnSegment]) -> list[torch.Tensor]:
    return [segment.image for segment in drawn if isinstance(segment, ImageSegment)]


def _show_the_same(world: World[Any], drawn: Sequence[torch.Tensor], targets: np.ndarray) -> list[float]:
    """1 if the inspector reads the same in both; targets float32 [n, 3, H, W]."""
    got, want = world.inspect(np.stack([image.numpy() for image in drawn])), world.inspect(targets)
    return [float(world.same(a, b)) for a, b in zip(got, want, strict=True)]
