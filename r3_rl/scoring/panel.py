"""The panel: asks every scorer, checks and weighs the answers, and says one verdict for each sample.

Missing is missing. A score that failed is None, never 0, and a sample that lacks the score of one scorer with a weight
has no total: a sum over fewer scorers would look like a bad image.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from typing import Literal

from r3_rl.errors import ScorerError
from r3_rl.observe.numbers import Numbers
from r3_rl.recipe.base import default
from r3_rl.recipe.learning import AlgorithmSection
from r3_rl.scoring.asked import ScorerSpec, cause_of
from r3_rl.scoring.base import RunProgress
from r3_rl.scoring.batch import ScoreBatch
from r3_rl.scoring.cache import ScoreCache
from r3_rl.scoring.calls import Caller
from r3_rl.scoring.seat import Column, Seat
from r3_rl.scoring.tally import Failure, Tally
from r3_rl.types import Verdict

__all__ = ["Aggregate", "Panel", "ScoreBatch", "ScorerSpec"]

Aggregate = Literal["sum_then_normalize", "normalize_then_sum"]
AGGREGATE: Aggregate = default(AlgorithmSection, "multi_objective_aggregation")
MOST_FAILED: float = default(AlgorithmSection, "max_failed_fraction")
_EPSILON = 1e-4  # TRL's, so that equal settings give equal rewards


class Panel:
    """Scores batches while the caller goes on: total = sum over scorers of weight * score.

    `max_failed_fraction` is the share of a scorer's samples in a step that may be missing before `metrics` stops the
    run. `num_workers` limits the scorers that run at once (asynchronous ones are not counted). With `held_out` the
    metrics are called `eval_rewards/...`. Threads belong to the panel: call `close`, or use it in a `with` block.

    >>> from r3_rl.types import Prompt
    >>> def brevity(completions, **columns):
    ...     return [1 / len(text.split()) for text in completions]
    >>> with Panel([ScorerSpec(name="brevity", scorer=brevity, weight=2.0)]) as panel:
    ...     panel.score(ScoreBatch(prompts=[Prompt(text="a dog")], texts=["two words"]))[0].total
    1.0
    """

    def __init__(
        self,
        specs: Sequence[ScorerSpec],
        *,
        aggregate: Aggregate = AGGREGATE,
        max_failed_fraction: float = MOST_FAILED,
        num_workers: int = 2,
        cache: ScoreCache | None = None,
        held_out: bool = False,
    ) -> None:
        names = [spec.name for spec in specs]
        if len(set(names)) < len(names):
            raise ValueError(f"two scorers of the panel have one name: {', '.join(names)}")
        self._caller = Caller(num_workers)
        self._seats = [Seat(spec, self._caller, cache) for spec in specs]
        self._aggregate = aggregate
        self._max_failed_fraction = max_failed_fraction
        self._held_out = held_out
        self.trainer_state = RunProgress()
        """What scorers are told of the run; whoever runs the steps replaces it."""
        self._num_submitted = 0
        self._broken: ScorerError | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The scorers in order."""
        return tuple(seat.spec.name for seat in self._seats)

    @property
    def compares_peers(self) -> bool:
        """Whether a scorer is group-wise, so that a batch must hold whole groups."""
        return any(seat.info.group_wise for seat in self._seats)

    def submit(self, batch: ScoreBatch, *, counted: bool = True) -> Future[list[Verdict]]:
        """Start scoring a batch; the future's `result()` raises `ScorerError` for an answer against the contract.

        What the policy did not draw in this step (images of the world, a gallery) is not `counted`: it enters no
        metric and no share of missing scores.
        """
        first = self._num_submitted
        if counted:
            self._num_submitted += batch.count
        return self._caller.submit(self._score(batch, first, counted, self.trainer_state))

    def score(self, batch: ScoreBatch, *, counted: bool = True) -> list[Verdict]:
        """Score a batch and wait for it."""
        return self.submit(batch, counted=counted).result()

    def rewards(self, verdicts: Sequence[Verdict], groups: Sequence[Hashable]) -> list[float | None]:
        """Return what the algorithm sees of each sample, None where the total is missing.

        `sum_then_normalize`: reward = total.
        `normalize_then_sum`: reward = sum over scorers of weight * (score - mean) / (std + 1e-4), mean and std (n - 1)
        over the peers that have a total. The names are those of TRL's `multi_objective_aggregation`. `groups` holds one
        value for each verdict, equal for peers.
        """
        totals = [verdict.total for verdict in verdicts]
        if self._aggregate == "sum_then_normalize":
            return totals
        peers: dict[Hashable, list[int]] = {}
        for index, group in enumerate(groups):
            if totals[index] is not None:
                peers.setdefault(group, []).append(index)
        weights = {seat.spec.name: seat.spec.weight for seat in self._seats if seat.spec.weight != 0}
        rewards: list[float | None] = [None] * len(verdicts)
        for members in peers.values():
            for index, reward in zip(members, _normalized([verdicts[i] for i in members], weights), strict=True):
                rewards[index] = reward
        return rewards

    def metrics(self) -> Numbers:
        """Close the step: return its metrics and start afresh.

        Raises `ScorerError` when an answer broke the contract, when the share of missing scores of a scorer with a
        weight is above `max_failed_fraction`, and when no scorer applied to anything. A held-out panel raises for none
        of these: its scores are missing then, and a line says so once for each scorer.
        """
        return self._caller.submit(self._close_step()).result()

    def prove(self) -> None:
        """Ask every scorer that declares itself deterministic about its first sample again, and say which gives another
        score: equal samples would silently share one of its answers. Costs one sample, once."""
        self._caller.submit(self._prove()).result()

    def close(self) -> None:
        """End the panel's threads; a call that still runs is left behind."""
        self._caller.close()

    def __enter__(self) -> Panel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def _score(self, batch: ScoreBatch, first: int, counted: bool, state: RunProgress) -> list[Verdict]:
        calls = (seat.ask(batch, first, state, counted=counted) for seat in self._seats)
        asked = await asyncio.gather(*calls, return_exceptions=True)
        columns: list[Column] = []
        for seat, answer in zip(self._seats, asked, strict=True):
            if isinstance(answer, Exception) and self._held_out:
                columns.append(_given_up(seat, batch, first, answer))
                continue
            if isinstance(answer, BaseException):
                if isinstance(answer, ScorerError) and self._broken is None and counted:
                    self._broken = answer
                raise answer
            columns.append(answer)
        return [self._verdict(columns, index) for index in range(batch.count)]

    async def _prove(self) -> None:
        proofs = (seat.prove(self.trainer_state) for seat in self._seats)
        for found in await asyncio.gather(*proofs, return_exceptions=True):
            if isinstance(found, BaseException) and not isinstance(found, ScorerError):
                raise found

    def _verdict(self, columns: list[Column], index: int) -> Verdict:
        counted = [
            (seat.spec.weight, column.scores[index])
            for seat, column in zip(self._seats, columns, strict=True)
            if seat.spec.weight != 0 and column.applies[index]
        ]
        parts = [weight * score for weight, score in counted if score is not None]
        total = math.fsum(parts) if counted and len(parts) == len(counted) else None
        highest = [
            max(seat.spec.weight * end for end in seat.info.range) if seat.info.range else None
            for seat, column in zip(self._seats, columns, strict=True)
            if seat.spec.weight != 0 and column.applies[index]
        ]
        known = [end for end in highest if end is not None]
        words = [(name, column.words[index]) for name, column in zip(self.names, columns, strict=True)]
        said = [(name, text) for name, text in words if text]
        return Verdict(
            total=total,
            scores={name: column.scores[index] for name, column in zip(self.names, columns, strict=True)},
            words=said[0][1] if len(said) == 1 else "; ".join(f"{name}: {text}" for name, text in said),
            best=math.fsum(known) if known and len(known) == len(highest) else 1.0,
        )

    async def _close_step(self) -> Numbers:
        tallies = [seat.tally for seat in self._seats]
        broken, self._broken = self._broken, None
        num_submitted, self._num_submitted = self._num_submitted, 0
        for seat in self._seats:
            seat.tally = Tally()
        if broken is not None:
            raise broken
        self._guard(tallies, num_submitted)
        values = Numbers()
        prefix = "eval_rewards" if self._held_out else "rewards"
        for seat, tally in zip(self._seats, tallies, strict=True):
            values |= tally.metrics(f"{prefix}/{seat.spec.name}")
        if self._held_out:
            return values
        for seat in self._seats:
            name = f"rewards/{seat.spec.name}/mean"
            if name in values and seat.spec.weight != 0:
                values |= Numbers(
                    {f"weighted_{name}": seat.spec.weight * values[name]}, {f"weighted_{name}": values.sizes[name]}
                )
        num_applicable = sum(tally.num_applicable for tally in tallies)
        if num_applicable:
            shares = {
                "scores/missing_fraction": sum(tally.num_missing for tally in tallies) / num_applicable,
                "scores/cache_hit_fraction": sum(tally.num_cached for tally in tallies) / num_applicable,
            }
            values |= Numbers(shares, dict.fromkeys(shares, num_applicable))
        return values

    def _guard(self, tallies: list[Tally], num_submitted: int) -> None:
        weighted = [tally for seat, tally in zip(self._seats, tallies, strict=True) if seat.spec.weight != 0]
        if num_submitted and weighted and not any(tally.num_applicable for tally in weighted):
            needs = "; ".join(f"'{seat.spec.name}' needs {', '.join(seat.info.needs)}" for seat in self._seats)
            nobody = ScorerError(f"no scorer applies to any of {num_submitted} samples: {needs}",
                                 hint="add a scorer that fits, or the columns it needs")  # fmt: skip
            if not self._held_out:
                raise nobody
            self._seats[0].warn_once("missing", f"held-out {nobody}")
        for seat, tally in zip(self._seats, tallies, strict=True):
            failure = tally.first_failure
            if failure is None or tally.missing_fraction <= self._max_failed_fraction:
                continue
            message = (
                f"scorer '{seat.spec.name}': {tally.num_missing} of {tally.num_applicable} scores are missing "
                f"({tally.missing_fraction:.0%}, allowed {self._max_failed_fraction:.0%}); {failure.cause}; "
                f"first at {failure.place}"
            )
            if seat.spec.weight != 0 and not self._held_out:
                raise ScorerError(message) from failure.error
            seat.warn_once("missing", message)  # logged only: worth a line, not the run


def _given_up(seat: Seat, batch: ScoreBatch, first: int, error: Exception) -> Column:
    """What a held-out scorer that broke the contract said about a batch: nothing. It is watched, not trained on."""
    for index, prompt in enumerate(batch.prompts):
        seat.tally.miss(Failure(position=first + index, prompt=prompt.text, cause=cause_of(error), error=error))
    seat.warn_once("missing", f"held-out: {cause_of(error)}; its scores are missing")
    return Column(scores=[None] * batch.count, words=[""] * batch.count, applies=[True] * batch.count)


def _normalized(verdicts: Sequence[Verdict], weights: Mapping[str, float]) -> list[float]:
    rewards = [0.0] * len(verdicts)
    for name, weight in weights.items():
        scores = {i: score for i, verdict in enumerate(verdicts) if (score := verdict.scores[name]) is not None}
        if len(scores) < 2:
            continue
        mean, std = statistics.fmean(scores.values()), statistics.stdev(scores.values())
        for index, score in scores.items():
            rewards[index] += weight * (score - mean) / (std + _EPSILON)
    return rewards
