"""What a rehearsal measures and finds: seconds and memory by stage, and what they mean for the run."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from r3_rl.observe.memory import gib, weighed
from r3_rl.observe.progress import duration
from r3_rl.recipe.branching import PHASES

STAGES: dict[str, tuple[str, ...]] = {
    "reason": ("plan", "draft", "score drafts", "update drafts", "optimiser"),
    "refine": ("critique", "refinement", "score refinements", "update refinements", "optimiser"),
    "critique": ("plan", "draft", "score drafts", "critique", "update critiques", "optimiser"),
    "full": ("plan", "draft", "score drafts", "update drafts", "optimiser"),
    "episode": ("plan", "draft", "score drafts", "optimiser"),
}
"""Kind of step -> its stages; a step of schedules `full` and `episode` has those of `AGAIN` in every round as well."""
AGAIN = ("critique", "refinement", "score refinements", "update refinements")
MOST_ROWS = 65536
"""Rollouts side by side, above which nobody asks."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a stage took."""

    seconds: float
    """For `Rehearsal.rows` rollouts."""
    peaks: tuple[tuple[int, int], ...] = ()
    """(rollouts side by side, most bytes beside the weights), by rising rollouts; empty where it does not matter."""
    share: float = 1.0
    """How much of a step's rollouts lie side by side: less than 1 where images are drawn in parts."""

    def bytes_at(self, rows: float) -> float:
        """Memory for a step of so many rollouts: the line through the smallest and the largest measurement."""
        if not self.peaks:
            return 0.0
        (few, low), (many, high) = self.peaks[0], self.peaks[-1]
        slope = max(high - low, 0) / (many - few) if many > few else low / few
        return low + slope * (rows * self.share - few)


@dataclass(kw_only=True)
class Meter:
    """Measures stages as they run; an engine takes it as its watch."""

    device: torch.device
    weigh: bool = True
    """Whether memory is measured too."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Stage -> the share of a run's rollouts that it takes side by side, if that is not all of them."""
    stage: str = ""
    """What runs, or ran last."""
    beside: int = 0
    """Rollouts that it has side by side."""
    seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str, rows: int) -> Iterator[None]:
        """Around a stage of some of the rollouts: the seconds of a stage add up."""
        self.stage, self.beside = stage, rows
        with weighed(self.device) if self.weigh else nullcontext() as taken:
            begin = time.perf_counter()
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begin
        if taken is not None:
            self.peaks.setdefault(stage, []).append((rows, taken.peak_bytes))

    def spent(self, stage: str) -> Spent:
        """What a stage took."""
        peaks = tuple(sorted(self.peaks.get(stage, ())))
        return Spent(seconds=self.seconds.get(stage, 0.0), peaks=peaks, share=self.shares.get(stage, 1.0))

    def fitting(self, rows: int, room: int) -> int:
        """At most so many rollouts, and no more than fit into the room by what was measured so far."""
        spent = [self.spent(stage) for stage in self.peaks]
        while rows > 2 and any(s.bytes_at(rows) > room for s in spent):
            rows -= 1
        return rows


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """One step of every kind, run for real, and what follows for the whole run."""

    device: str
    schedule: str
    rounds: int
    turn: tuple[int, int]
    """Of `tree` and `cotrain`: steps of drafts, and of the other kind after them."""
    num_iterations: int
    """Updates on the same rollouts; each counts as a step."""
    num_steps: int
    num_prompts: int
    num_peers: int
    """Rollouts below each prompt."""
    rows: int
    """Rollouts that the seconds were taken with: those of a step, or fewer where they would not have fitted."""
    stages: Mapping[str, Spent]
    resident: Mapping[str, int]
    """What is held all the time, bytes by name."""
    sampling: int = 0
    """Bytes that are held in rollouts too: weights that are in shards otherwise."""
    updating: int = 0
    """Bytes that are held in an update too: layers on their way to and from their shards."""
    caches: int
    """Bytes of the largest cache of keys and values at `rows` rollouts, part of the stages' memory."""
    update_bytes: int
    """Most that an update takes beside what is held, whatever the group: the token budget bounds it."""
    free: int
    """Bytes that were free before anything was loaded."""
    notes: tuple[str, ...] = ()

    @property
    def whole(self) -> int:
        """Rollouts of a step."""
        return self.num_prompts * self.num_peers

    @property
    def rollout_bytes(self) -> float:
        """Most that the rollouts of a step take beside what is held."""
        return max(spent.bytes_at(self.whole) for spent in self.stages.values())

    @property
    def peak(self) -> float:
        """Most that is held at once, bytes."""
        sampled, updated = self.sampling + self.rollout_bytes, self.updating + self.update_bytes
        return sum(self.resident.values()) + max(sampled, updated)

    @property
    def fits(self) -> bool:
        """Whether the run fits into what was free."""
        return self.peak <= self.free

    @property
    def largest_group(self) -> int:
        """Most peers with these prompts side by side; 0 where not even the update fits."""
        held = sum(self.resident.values())
        if held + self.updating + self.update_bytes > self.free:
            return 0
        groups = range(1, MOST_ROWS // self.num_prompts + 1)
        return bisect_left(groups, True, key=lambda group: not self._fits(held + self.sampling, group))

    def _fits(self, held: int, group: int) -> bool:
        rows = group * self.num_prompts
        return all(held + spent.bytes_at(rows) <= self.free for spent in self.stages.values())

    def step_s(self, phase: str) -> float:
        """Seconds of a step of this kind, with its share of rollouts that several updates learn from."""
        names = [*STAGES[phase], *(AGAIN * self.rounds if phase in ("full", "episode") else ())]
        ran = [(name, self.stages[name].seconds) for name in names if name in self.stages]
        shared = {name: 1 if name.startswith(("update", "optimiser")) else self.num_iterations for name, _ in ran}
        return sum(s * (1 if name == "optimiser" else self._scale) / shared[name] for name, s in ran)

    @property
    def _scale(self) -> float:
        return self.whole / self.rows

    @property
    def run_s(self) -> float:
        """Seconds of all steps; measurements, pictures and checkpoints come on top."""
        phases = PHASES[self.schedule]
        if self.schedule in ("tree", "cotrain"):
            phases = (*phases[:1] * self.turn[0], *phases[1:] * self.turn[1])
        return self.num_steps * sum(map(self.step_s, phases)) / len(phases)

    def __str__(self) -> str:
        return "\n".join([*self._seconds(), "", *self._memory(), "", *self._verdict(), *self.notes])

    def _seconds(self) -> list[str]:
        lines = [f"{'stage':24}{'seconds':>10}{'memory':>14}", "-" * 48]
        for name, spent in self.stages.items():
            memory = gib(spent.bytes_at(self.rows)) if spent.peaks else ""
            lines.append(f"{name:24}{spent.seconds:10.2f}{memory:>14}")
        return lines

    def _memory(self) -> list[str]:
        plan = {
            **self.resident,
            **({"weights gathered for rollouts": self.sampling} if self.sampling else {}),
            **({"layers on their way in an update": self.updating} if self.updating else {}),
            "caches of a step": self.caches * self._scale,
            "activations of rollouts": max(self.rollout_bytes - self.caches * self._scale, 0.0),
            "activations of an update": self.update_bytes,
        }
        lines = [f"{'memory plan':34}{'bytes':>14}", "-" * 48]
        return [*lines, *(f"{name:34}{gib(size):>14}" for name, size in plan.items())]

    def _verdict(self) -> list[str]:
        group = self.largest_group
        most = f"more than {group}" if (group + 1) * self.num_prompts > MOST_ROWS else str(group)
        side = f"{self.num_prompts} prompt{'s' * (self.num_prompts > 1)} side by side"
        kinds = dict.fromkeys(PHASES[self.schedule])
        steps = " and ".join(f"a {kind} step {self.step_s(kind):.1f} s" for kind in kinds)
        return [
            f"peak {gib(self.peak)} of {gib(self.free)} free on {self.device}: "
            f"{'fits' if self.fits else 'DOES NOT FIT'}",
            f"largest group that fits, {side}: {most if group else 'none, lower training.token_budget'}",
            f"{steps}: {self.num_steps} steps take about {duration(self.run_s)}, without measurements and pictures",
        ]
