"""A policy that takes the time of its calls, and a protocol in which every critique asks for an edit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from r3_rl.modalities import Context, ImageSegment, Segment, TextSegment
from r3_rl.policy.bagel.policy import BagelPolicy
from r3_rl.policy.base import Drawing, Heard, Replay, Sampling
from r3_rl.stages.protocol import Protocol
from r3_rl.types import Critique

Result = TypeVar("Result")


class TimedPolicy(BagelPolicy):
    """Seconds of write, draw and replay add up in `seconds`, which the caller clears."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seconds: dict[str, float] = {}

    def write(
        self,
        contexts: Sequence[Context],
        sampling: Sampling,
        seeds: Sequence[int],
        heard: Sequence[Heard | None] | None = None,
    ) -> list[TextSegment]:
        return self._timed("write", lambda: super(TimedPolicy, self).write(contexts, sampling, seeds, heard))

    def draw(
        self,
        contexts: Sequence[Context],
        drawings: Sequence[Drawing],
        seeds: Sequence[int],
        noise_seeds: Sequence[int] | None = None,
    ) -> list[ImageSegment]:
        return self._timed("draw", lambda: super(TimedPolicy, self).draw(contexts, drawings, seeds, noise_seeds))

    def replay(self, segments: Sequence[Segment]) -> list[Replay]:
        return self._timed("replay", lambda: super(TimedPolicy, self).replay(segments))

    def _timed(self, name: str, run: Callable[[], Result]) -> Result:
        begin = time.perf_counter()
        result = run()
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
        return result


@dataclass(frozen=True, kw_only=True)
class EveryoneEdits(Protocol):
    """Reads every critique as a well-formed one with an instruction, whatever it says."""

    instruction: str = "add a red circle top left"

    def read_critique(self, segment: TextSegment) -> Critique:
        """As the protocol reads it; an instruction is put where there is none."""
        critique = super().read_critique(segment)
        return replace(critique, well_formed=True, stop=False, instruction=critique.instruction or self.instruction)
