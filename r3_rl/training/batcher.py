"""A step's credits -> micro-batches: as many in every process, in the same order.

Micro-batches are packed up to a token budget; a plan and the draft drawn after it travel together, so that one pass
scores both. Processes roll out different things, so one has more micro-batches than another, or none. Those that have
fewer run dummies: a tiny forward and backward pass whose loss weighs nothing. So whatever the processes do together in
a pass (gather a layer's weights, add up its gradient) lines up.

A dummy has the kinds of segments, texts or images, that the micro-batch of the same number has in another process. It
leaves a gradient of zero, and only where another process leaves one: what nobody learned from keeps none, as in one
process. Others do the same: verl takes the largest count of all ranks, prime-rl dummies of one modality.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest

import torch

from r3_rl import ranks
from r3_rl.flow.guidance import Guidance
from r3_rl.modalities import Segment, TextPiece, TextSegment
from r3_rl.policy.base import Drawing, Policy, Sampling
from r3_rl.policy.prefixes import context_key, written_before
from r3_rl.policy.routing import routing_of
from r3_rl.recipe.base import default
from r3_rl.recipe.running import TrainingSection
from r3_rl.training.credit import Credit


@dataclass(frozen=True, kw_only=True, eq=False)
class MicroBatch:
    """What one pass replays."""

    credits: tuple[Credit, ...]
    dummy: bool = False
    """Whether its loss weighs nothing."""

    @property
    def segments(self) -> list[Segment]:
        """What is replayed."""
        return [credit.segment for credit in self.credits]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batcher:
    """Cuts the credits of this process.

    >>> from r3_rl.training.batcher import Batcher
    >>> Batcher(policy=None, token_budget=4096).plan([])
    []
    """

    policy: Policy
    token_budget: int = default(TrainingSection, "token_budget")
    """Tokens of a micro-batch at most, contexts included; what does not fit is one by itself."""
    drawing: Drawing = field(default_factory=Drawing)
    """How the run draws: a dummy image is a token of one of its images."""

    def plan(self, credits: Sequence[Credit]) -> list[MicroBatch]:
        """The micro-batches of a step. Every process calls it together, those without credits too."""
        own = [MicroBatch(credits=tuple(batch)) for batch in micro_batches(self.policy, credits, self.token_budget)]
        by_task = bool(own) and routing_of(self.policy.module) is not None
        everyones = ranks.everyone([{_kind(credit, by_task=by_task) for credit in batch.credits} for batch in own])
        kinds = [set().union(*numbered) for numbered in zip_longest(*everyones, fillvalue=set())]
        return own + [
            MicroBatch(credits=tuple(self.dummies[kind] for kind in sorted(missing)), dummy=True)
            for missing in kinds[len(own) :]
        ]

    @cached_property
    def dummies(self) -> _Dummies:
        return _Dummies(self.policy, self.drawing)


def _kind(credit: Credit, *, by_task: bool) -> tuple[str, str]:
    """Its objective, and its task where tasks have weights of their own."""
    return credit.objective, credit.stage if by_task else ""


class _Dummies(dict[tuple[str, str], Credit]):
    """A word of text and a token of an image, by kind; made when they are first needed."""

    def __init__(self, policy: Policy, drawing: Drawing) -> None:
        super().__init__()
        self._policy, self._drawing = policy, drawing

    def __missing__(self, kind: tuple[str, str]) -> Credit:
        (objective, task), context = kind, (TextPiece(text="a"),)
        segment: Segment
        with torch.no_grad():
            if objective == "understanding":
                (segment,) = self._policy.write([context], Sampling(max_new_tokens=1, task=task), [0])
            else:
                how = replace(self._drawing, num_steps=2, sde_steps=(0,), guidance=Guidance(), task=task)
                segment = self._policy.draw([context], [how], [0])[0].least()
        self[kind] = Credit(segment=segment, advantage=0.0, stage="dummy")
        return self[kind]


def micro_batches(policy: Policy, credits: Sequence[Credit], token_budget: int) -> list[list[Credit]]:
    """Packs credits up to the budget. A plan stays with its draft; peers lie side by side, so that a pass reads what
    they share once; the longest come first, so that like lengths share a pass."""
    groups: dict[Hashable, list[tuple[int, list[Credit]]]] = {}
    for bundle in _bundles(credits):
        size = policy.num_tokens([c.segment for c in bundle])
        # peers read the same first piece, after the system prompt that all rows read
        shared = next((piece.key for piece in bundle[0].segment.context if not piece.keep), None)
        groups.setdefault(shared, []).append((size, bundle))
    for peers in groups.values():
        peers.sort(key=lambda pair: -pair[0])
    batches: list[list[Credit]] = []
    most = 0  # tokens of the newest batch, counted too high while it fits all the same
    for size, bundle in (pair for peers in sorted(groups.values(), key=lambda peers: -peers[0][0]) for pair in peers):
        # like lengths lie side by side: only the newest batch is tried
        if batches and most + size > token_budget:
            most = policy.num_tokens([c.segment for c in (*batches[-1], *bundle)]) - size
        if batches and most + size <= token_budget:
            batches[-1].extend(bundle)
            most += size
        else:
            batches.append(list(bundle))
            most = size
    return batches


def _bundles(credits: Sequence[Credit]) -> list[list[Credit]]:
    """One bundle a text, with the drafts drawn after it, and one for every other image."""
    bundles: list[list[Credit]] = []
    by_text: dict[Hashable, list[Credit]] = {}
    for credit in credits:
        if isinstance(segment := credit.segment, TextSegment):
            bundles.append([credit])
            # peers may write the same text: either may go with the drafts
            by_text.setdefault((context_key(segment.context), segment.token_ids), bundles[-1])
    for credit in credits:
        if isinstance(credit.segment, TextSegment):
            continue
        host = by_text.get(written_before(credit.segment.context)) if credit.stage == "draft" else None
        if host is not None:
            host.append(credit)
        else:
            bundles.append([credit])
    return bundles
