"""A trajectory as people look at it: images with scores, and the words in between. Also what is kept on disk.

In `types.Round` a critique belongs to the image it led to; here it stands with the image it was written about, since
that is how it is read: image, score, critique of it, next image.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from r3_rl.types import Critique, Trajectory

IMAGE_NAME = re.compile(r"[0-9a-f]{32}\.png")
MAX_IMAGE_PX = 4096
FIXED_PICK_SEED = 20_26


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenRound:
    """One image, what the scorers said about it, and what the policy said about it."""

    pixels: np.ndarray | None
    """uint8 [H, W, 3]; None when the file on disk is gone."""
    score: float | None = None
    """The panel's total; None when it is missing."""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """Raw score by scorer."""
    words: str = ""
    """The scorers' reason in words."""
    plan: str = ""
    """Round 0: the plan that it was drawn from."""
    critique: str | None = None
    """The critique of this image; None when the loop had run out of rounds."""
    instruction: str = ""
    """The edit instruction of the critique; empty on a stop or a malformed critique."""
    stop: bool = False
    """True when the critique asks for no further edit."""
    well_formed: bool = True
    """False when the critique cannot be parsed, which ends the loop too."""

    @property
    def thoughts(self) -> str:
        """The critique without the instruction at its end, which is shown apart."""
        return (self.critique or "").removesuffix(self.instruction).rstrip()


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenTrajectory:
    """A trajectory ready to be shown or written."""

    prompt: str
    tag: str
    """The prompt's kind (`columns["tag"]`); empty when it has none."""
    rounds: tuple[SeenRound, ...]

    @property
    def change(self) -> float:
        """Score of the last image minus that of the draft; 0 where either is missing."""
        first, last = self.rounds[0].score, self.rounds[-1].score
        return 0.0 if first is None or last is None else last - first


def see(trajectory: Trajectory) -> SeenTrajectory:
    """Bring a trajectory into the order in which people read it.

    Args:
        trajectory: rounds with images float32 [3, H, W] in [0, 1].
    """
    critiques = [this.critique for this in trajectory.rounds[1:]] + [trajectory.last_critique]
    rounds = []
    for this, critique in zip(trajectory.rounds, critiques, strict=True):
        verdict = this.verdict
        rounds.append(
            SeenRound(
                pixels=to_pixels(this.image.image),
                score=verdict.total if verdict else None,
                scores=dict(verdict.scores) if verdict else {},
                words=verdict.words if verdict else "",
                plan=this.plan.text if this.plan else "",
                **_critique_fields(critique),
            )
        )
    return SeenTrajectory(
        prompt=trajectory.prompt.text, tag=str(trajectory.prompt.columns.get("tag", "")), rounds=tuple(rounds)
    )


def _critique_fields(critique: Critique | None) -> dict[str, Any]:
    if critique is None:
        return {}
    return {
        "critique": critique.segment.text,
        "instruction": critique.instruction,
        "stop": critique.stop,
        "well_formed": critique.well_formed,
    }


def to_pixels(image: Any) -> np.ndarray:
    """uint8 [H, W, 3] from a float tensor or array [3, H, W] in [0, 1]; values outside are clipped.

    >>> to_pixels(np.ones((3, 2, 4), dtype=np.float32)).shape
    (2, 4, 3)
    """
    array = image.detach().float().cpu().numpy() if hasattr(image, "detach") else np.asarray(image)
    assert array.ndim == 3 and array.shape[0] == 3, array.shape
    # NaN from a policy gone wrong is drawn black: a picture of the failure is worth more than a crash while saving it.
    scaled = np.nan_to_num(array.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0) * 255
    return np.ascontiguousarray(scaled.clip(0, 255).round().astype(np.uint8).transpose(1, 2, 0))


@dataclass(frozen=True, kw_only=True)
class Pick:
    """Which trajectory is kept, and why."""

    index: int
    kept_as: str
    """`best`, `worst` or `random`."""


def pick_trajectories(trajectories: Sequence[Trajectory], keep: int) -> list[Pick]:
    """Choose at most `keep` trajectories, a third each: best, worst and random ones, none twice.

    Best and worst go by the last image's score, then by how much the loop changed it, so that a repaired draft stands
    before one that was right at once. Random ones depend on the number of trajectories only: the same prompts before
    and after training are kept at the same places.

    Args:
        trajectories: of one step, or of an evaluation.
        keep: most to keep, at least 0.
    """
    scored = [index for index, this in enumerate(trajectories) if _final_score(this) is not None]
    ranked = sorted(scored, key=lambda index: (_final_score(trajectories[index]), _change(trajectories[index])))
    order = list(range(len(trajectories)))
    random.Random(FIXED_PICK_SEED).shuffle(order)
    num_random = keep - 2 * (keep // 3)
    picks = [Pick(index=index, kept_as="random") for index in order[:num_random]]
    taken = {pick.index for pick in picks}
    for kept_as, candidates in (("best", ranked[::-1]), ("worst", ranked)):
        fresh = [index for index in candidates if index not in taken][: keep // 3]
        taken.update(fresh)
        picks += [Pick(index=index, kept_as=kept_as) for index in fresh]
    return picks


def _final_score(trajectory: Trajectory) -> float | None:
    verdict = trajectory.final.verdict
    return verdict.total if verdict else None


def _change(trajectory: Trajectory) -> float:
    first, last = trajectory.rounds[0].verdict, trajectory.final.verdict
    if first is None or last is None or first.total is None or last.total is None:
        return 0.0
    return last.total - first.total


def load_trajectory(row: Mapping[str, Any], images: Path) -> SeenTrajectory:
    """Read one line of `trajectories.jsonl` with its images.

    Args:
        row: the line, as parsed.
        images: the run's `images/` folder; nothing outside it is read, whatever the line says.

    Raises:
        KeyError, TypeError: when the line is not one that the recorder wrote.
    """
    rounds = tuple(
        SeenRound(
            pixels=_load_pixels(images, this["image"]),
            score=this["score"],
            scores=dict(this["scores"]),
            words=str(this["words"]),
            plan=str(this.get("plan", "")),
            critique=this.get("critique"),
            instruction=str(this.get("instruction", "")),
            stop=bool(this["stop"]),
            well_formed=bool(this.get("well_formed", True)),
        )
        for this in row["rounds"]
    )
    if not rounds:
        raise KeyError("rounds")
    return SeenTrajectory(prompt=str(row["prompt"]), tag=str(row["tag"]), rounds=rounds)


def _load_pixels(images: Path, name: str) -> np.ndarray | None:
    if not IMAGE_NAME.fullmatch(name) or not (images / name).is_file():
        return None
    with Image.open(images / name, formats=("PNG",)) as image:
        if max(image.size) > MAX_IMAGE_PX:
            return None
        return np.asarray(image.convert("RGB"))
