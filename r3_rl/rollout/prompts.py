"""The order of a run's prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from r3_rl.errors import DataError, InputError
from r3_rl.types import Prompt


class PromptStream:
    """The prompts of every training step, from the step's number alone, so that a resumed run goes on exactly.

    Prompts from a list come in a new order every epoch, each once; a batch that an epoch's end falls into goes on with
    the next epoch. The processes of a run take neighbouring parts of the same batch, so two see together what one sees.

    Args:
        prompts: a list, or `sample(n, seed)` of a world that makes its own.
        num_prompts: prompts of a step over all processes.
        seed: of the order, or of the samples.

    >>> stream = PromptStream([Prompt(text=t) for t in "abc"], num_prompts=2, seed=0)
    >>> sorted(p.text for step in (0, 1, 2) for p in stream.batch(step))
    ['a', 'a', 'b', 'b', 'c', 'c']
    """

    def __init__(
        self, prompts: Sequence[Prompt] | Callable[[int, int], Sequence[Prompt]], num_prompts: int, seed: int
    ) -> None:
        if num_prompts < 1:
            raise InputError(f"rollout.num_prompts: {num_prompts} is less than 1")
        if not callable(prompts) and not prompts:
            raise DataError("no prompts to draw from")
        self._prompts, self._num_prompts, self._seed = prompts, num_prompts, seed
        self._orders: dict[int, np.ndarray] = {}
        if callable(prompts):
            self.batch(0)  # a world's mistakes show, and its pools are made, before anything is loaded

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> list[Prompt]:
        """The prompts of one step (from 0 on) on one of `world_size` processes."""
        if self._num_prompts % world_size:
            raise InputError(
                f"rollout.num_prompts: {self._num_prompts} prompts cannot be shared by {world_size} processes",
                hint=f"use a multiple of {world_size}",
            )
        share = self._num_prompts // world_size
        if callable(self._prompts):
            seed = int(np.random.SeedSequence([self._seed, step]).generate_state(1)[0])
            made = self._prompts(self._num_prompts, seed)
            assert len(made) == self._num_prompts, f"asked for {self._num_prompts} prompts, got {len(made)}"
            return list(made[rank * share : (rank + 1) * share])
        first = step * self._num_prompts + rank * share
        return [self._prompts[self._index(place)] for place in range(first, first + share)]

    def _index(self, place: int) -> int:
        epoch, within = divmod(place, len(self._prompts))  # type: ignore[arg-type]
        if epoch not in self._orders:
            if len(self._orders) > 1:  # a step touches at most two epochs of a file larger than a batch
                self._orders.clear()
            rng = np.random.default_rng([self._seed, epoch])
            self._orders[epoch] = rng.permutation(len(self._prompts))  # type: ignore[arg-type]
        return int(self._orders[epoch][within])
