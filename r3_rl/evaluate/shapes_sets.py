"""The fixed sets of the embedded world's bench: made from the first phase, the same in every later one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from r3_rl.evaluate.reflection import FixedDrafts, own_drafts
from r3_rl.types import Trajectory
from r3_rl.worlds.shapes.data import WrongDraft, fixed_wrong_drafts
from r3_rl.worlds.shapes.drawing import render, roughen_pixels
from r3_rl.worlds.shapes.prompts import sample_prompts, sample_scene

SEED = 77_001
"""Of the held-out sets: the same for every run, so that runs can be compared."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OwnDrafts:
    """A policy's own drafts, told apart by the judge."""

    rights: FixedDrafts
    wrongs: FixedDrafts

    @classmethod
    def of(cls, trajectories: Sequence[Trajectory], *, limit: int) -> OwnDrafts:
        """The first `limit` wrong drafts, and at most as many right ones."""
        wrongs = own_drafts(trajectories, wanted=0.0, limit=limit)
        return cls(rights=own_drafts(trajectories, wanted=1.0, limit=len(wrongs.images)), wrongs=wrongs)

    def balanced(self) -> OwnDrafts:
        """As many right as wrong ones; none of either if there are none of one."""
        half = min(len(self.rights.images), len(self.wrongs.images))
        return OwnDrafts(rights=self.rights.first(half), wrongs=self.wrongs.first(half))


@dataclass(frozen=True, kw_only=True, eq=False)
class FixedSets:
    """Images that every phase reads."""

    synthetic: tuple[WrongDraft, ...]
    wrong: FixedDrafts
    """The synthetic ones, then the base's own."""
    rights: FixedDrafts
    """Renders, then the base's own."""
    base_drafts: OwnDrafts
    """Balanced."""

    @classmethod
    def of(
        cls,
        walked: Sequence[Trajectory],
        own: OwnDrafts,
        *,
        num_wrong: int,
        num_right: int,
        tags: Sequence[str] | None,
    ) -> FixedSets:
        """Half of the wrong and of the right images are the base's own, as far as it has so many.

        Args:
            walked: the base's judged trajectories.
            own: more of its drafts.
            num_wrong, num_right: images of either kind.
            tags: kinds of the prompts of images that the world draws; None for all.
        """
        own_wrong = own_drafts(walked, wanted=0.0, limit=num_wrong // 2)
        own_right = own_drafts(walked, wanted=1.0, limit=num_right // 2)
        synthetic = tuple(fixed_wrong_drafts(num_wrong - len(own_wrong.images), tags=tags))
        drawn = FixedDrafts(
            prompts=tuple(d.prompt for d in synthetic), images=tuple(torch.from_numpy(d.image) for d in synthetic)
        )
        return cls(
            synthetic=synthetic,
            wrong=drawn + own_wrong,
            rights=right_renders(num_right - len(own_right.images), tags=tags) + own_right,
            base_drafts=own.balanced(),
        )


def right_renders(count: int, *, tags: Sequence[str] | None) -> FixedDrafts:
    """Right images of held-out prompts, with the pixel noise that a model's images have."""
    rng = np.random.default_rng(SEED + 3)
    prompts = sample_prompts(count, split="held_out", tags=tags, seed=rng)
    images = roughen_pixels(render([sample_scene(p, rng) for p in prompts]), rng)
    return FixedDrafts(prompts=tuple(prompts), images=tuple(torch.from_numpy(i) for i in images))


def digest(texts: Iterable[str]) -> str:
    """Sixteen characters that tell sets of texts apart.

    >>> digest(["a red circle"]) == digest(["a red", "circle"])
    False
    """
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
