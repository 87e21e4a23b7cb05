"""What the loop's bench measures on: sets that the world makes, and those that the first phase adds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from r3_rl.evaluate.reflection import FixedDrafts, own_drafts
from r3_rl.types import Prompt, Trajectory
from r3_rl.worlds.base import Edited, Question, Tags, World
from r3_rl.worlds.sets import Drawn, Pair, pairs, right_drafts, wrong_drafts

WRONG, PAIRS = 20_000 - 77_001, 30_000 - 77_001
"""From the seed of the items to that of the wrong drafts and of the pairs."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many items each set has."""

    num_prompts: int
    num_fixed: int = 500
    """Wrong drafts of the fixed set: half synthetic, half the base's own (as far as it has so many)."""
    num_right: int = 200
    num_questions: int = 300
    num_swap: int = 200
    """Most wrong drafts of the current policy that its own and the base's critic read; its own reads as many right
    ones. They are fewer if `drafting.sample_drafts` found no more."""
    num_pairs: int = 120
    """Prompts with a right image and a near miss each."""
    num_plans: int = 200
    """True plans to draw."""
    num_edits: int = 200
    """True instructions to carry out."""
    num_critics: int = 150
    """Most wrong drafts of the fixed set that are redrawn by what other critics say."""
    num_own_questions: int = 150
    """Most questions about drafts of its own."""
    num_others: int = 120
    """Prompts of the kinds that are left out of `prompts`."""

    def at_most(self, limit: int) -> Sizes:
        """The same with no set larger than `limit`.

        >>> few = Sizes(num_prompts=3).at_most(5)
        >>> few.num_prompts, few.num_edits
        (3, 5)
        """
        return Sizes(**{size.name: min(getattr(self, size.name), limit) for size in fields(self)})


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

    synthetic: tuple[Drawn, ...]
    """Wrong drafts that the world drew."""
    wrong: FixedDrafts
    """The synthetic ones, then the base's own."""
    rights: FixedDrafts
    """Renders, then the base's own."""
    base_drafts: OwnDrafts
    """Balanced."""
    own_wrong: FixedDrafts
    own_right: FixedDrafts
    """The base's own, the last ones of `wrong` and of `rights`."""

    @classmethod
    def of(
        cls,
        world: World[Any],
        walked: Sequence[Trajectory],
        own: OwnDrafts,
        sizes: Sizes,
        *,
        tags: Tags,
        seed: int,
    ) -> FixedSets:
        """Half of the wrong and of the right images are the base's own, as far as it has so many.

        Args:
            world: draws what the base has not made.
            walked: the base's judged trajectories.
            own: more of its drafts.
            sizes: of both.
            tags: kinds of the prompts of images that the world draws; None for all.
            seed: of the items.
        """
        own_wrong = own_drafts(walked, wanted=0.0, limit=sizes.num_fixed // 2)
        own_right = own_drafts(walked, wanted=1.0, limit=sizes.num_right // 2)
        return cls.around(world, own_wrong, own_right, own.balanced(), sizes, tags=tags, seed=seed)

    @classmethod
    def around(
        cls,
        world: World[Any],
        own_wrong: FixedDrafts,
        own_right: FixedDrafts,
        base_drafts: OwnDrafts,
        sizes: Sizes,
        *,
        tags: Tags,
        seed: int,
    ) -> FixedSets:
        """The sets around drafts of the base that are known: the world draws the rest, the same ones every time."""
        synthetic = tuple(wrong_drafts(world, sizes.num_fixed - len(own_wrong.images), tags=tags, seed=seed + WRONG))
        rights = right_drafts(world, sizes.num_right - len(own_right.images), tags=tags, seed=seed + 3)
        return cls(
            synthetic=synthetic,
            wrong=fixed_drafts(synthetic) + own_wrong,
            rights=fixed_drafts(rights) + own_right,
            base_drafts=base_drafts,
            own_wrong=own_wrong,
            own_right=own_right,
        )


def fixed_drafts(drawn: Sequence[Drawn]) -> FixedDrafts:
    """What a world drew, as drafts to look at."""
    return FixedDrafts(prompts=tuple(d.prompt for d in drawn), images=tuple(torch.from_numpy(d.image) for d in drawn))


@dataclass(frozen=True, kw_only=True, eq=False)
class LoopItems:
    """Everything that the loop is measured on, made once."""

    sizes: Sizes
    seed: int
    """Of the items, and of what the policy samples on them."""
    prompts: tuple[Prompt, ...]
    plans: tuple[Prompt, ...]
    """Whose true plans are drawn."""
    others: tuple[Prompt, ...]
    """Of the kinds that are left out of `prompts`."""
    pairs: tuple[Pair, ...]
    edits: tuple[Edited, ...]
    questions: tuple[Question, ...]
    fixed: FixedSets | None = None
    """None until a first phase was measured."""

    @classmethod
    def of(cls, world: World[Any], sizes: Sizes, *, tags: Tags, seed: int) -> LoopItems:
        """The items of a world: held-out prompts of the kinds `tags`, None for all kinds."""
        left_out = [tag for tag in world.tags if tags is not None and tag not in tags]
        others = world.prompts(sizes.num_others, split="held_out", tags=left_out, seed=seed + 13) if left_out else []
        return cls(
            sizes=sizes,
            seed=seed,
            prompts=tuple(world.prompts(sizes.num_prompts, split="held_out", tags=tags, seed=seed)),
            plans=tuple(world.prompts(sizes.num_plans, split="held_out", tags=tags, seed=seed + 12)),
            others=tuple(others),
            pairs=tuple(pairs(world, sizes.num_pairs, tags=tags, seed=seed + PAIRS)),
            edits=tuple(world.edits(sizes.num_edits, seed=seed + 5)),
            questions=tuple(world.questions(sizes.num_questions, seed=seed + 4)),
        )

    def texts(self) -> dict[str, list[str]]:
        """What each item of each set asks for. The base's own drafts among the fixed ones are told by their prompts:
        their pixels differ in the last digit from one processor to the next."""
        asked: dict[str, Iterable[Prompt]] = {
            "prompts": self.prompts,
            "plans": self.plans,
            "others": self.others,
            "pairs": [pair.right.prompt for pair in self.pairs],
        }
        if self.fixed is not None:
            base = self.fixed.base_drafts
            asked["wrong"], asked["right"] = self.fixed.wrong.prompts, self.fixed.rights.prompts
            asked["base_drafts"] = [*base.rights.prompts, *base.wrongs.prompts]
        found = {name: [p.text for p in prompts] for name, prompts in asked.items()}
        found["edits"] = [e.instruction for e in self.edits]
        return found | {"questions": [q.words for q in self.questions]}


def digest(texts: Iterable[str]) -> str:
    """Sixteen characters that tell sets of texts apart.

    >>> digest(["a red circle"]) == digest(["a red", "circle"])
    False
    """
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
