"""Does looking beat drawing again? Several sampled drafts of each prompt, and what picking among them would give.

At equal cost: a loop of R rounds draws at most R + 1 images a prompt, so it is compared with the best of R + 1 drafts.
"""

from __future__ import annotations

from collections.abc import Sequence

from r3_rl.evaluate.measured import Values, chunks, right
from r3_rl.evaluate.reflection import FixedDrafts, Judge, first_critique, judged, read
from r3_rl.policy.base import Policy
from r3_rl.rollout.engine import run_loop
from r3_rl.rollout.rows import round_seed
from r3_rl.stages.settings import LoopSettings
from r3_rl.types import Trajectory

PASS_DRAFTS = 8
"""Drafts of a prompt for pass@8."""
PASS_PROMPTS = 128
"""Prompts that have so many drafts, the first ones: images cost more than a narrower interval is worth."""


def sample_drafts(
    policy: Policy, walked: Sequence[Trajectory], settings: LoopSettings, judge: Judge, *, rounds: int, seed: int
) -> list[list[Trajectory]]:
    """Draw further drafts of the prompts of sampled trajectories.

    Args:
        policy: who draws.
        walked: [P] judged trajectories of the loop; their drafts count, and are not drawn twice.
        settings: with texts sampled.
        judge: of the world.
        rounds: of the loop that the drafts are compared with.
        seed: of the drafts, another one than the loop's.

    Returns:
        [P] lists of judged drafts, the loop's first: `rounds` + 1 of each prompt, at least PASS_DRAFTS of the first
        PASS_PROMPTS.
    """
    drafts = [[trajectory] for trajectory in walked]
    most = max(rounds + 1, PASS_DRAFTS)
    missing = [
        place
        for number in range(1, most)
        for place in range(len(walked))
        if number <= rounds or place < PASS_PROMPTS
    ]  # fmt: skip
    for part in chunks(len(missing)):
        prompts = [walked[place].prompt for place in missing[part]]
        drawn = judged(run_loop(policy, prompts, settings, rounds=0, seed=seed + part.start), judge)
        for place, trajectory in zip(missing[part], drawn, strict=True):
            drafts[place].append(trajectory)
    return drafts


def in_turns(drafts: Sequence[Sequence[Trajectory]]) -> list[Trajectory]:
    """All drafts, first one of each prompt, then a second one of each that has two, and so on."""
    most = max(map(len, drafts), default=0)
    return [these[number] for number in range(most) for these in drafts if number < len(these)]


def measure_drafts(
    policy: Policy, drafts: Sequence[Sequence[Trajectory]], settings: LoopSettings, *, rounds: int, seed: int
) -> Values:
    """`draft_pass_8`, and with N = rounds + 1 `best_of_N_oracle` and `best_of_N_own_critic`.

    Args:
        policy: whose critique picks: the first of N drafts at which it stops, else the last.
        drafts: of `sample_drafts`.
        settings: with texts sampled.
        rounds: of the loop; 0 leaves nothing to pick from.
        seed: of the critiques of further drafts. The loop's own are used for the first.
    """
    values: Values = {
        f"draft_pass_{PASS_DRAFTS}": [
            float(any(right(t.rounds[0].verdict) for t in these[:PASS_DRAFTS]))
            for these in drafts[:PASS_PROMPTS]
        ]
    }  # fmt: skip
    if rounds == 0:
        return values
    count = rounds + 1
    picked = _picked_by_critic(policy, drafts, settings, count, seed)
    values[f"best_of_{count}_oracle"] = [
        float(any(right(t.rounds[0].verdict) for t in these[:count])) for these in drafts
    ]
    values[f"best_of_{count}_own_critic"] = [
        right(these[number].rounds[0].verdict) for these, number in zip(drafts, picked, strict=True)
    ]
    return values


def _picked_by_critic(
    policy: Policy, drafts: Sequence[Sequence[Trajectory]], settings: LoopSettings, count: int, seed: int
) -> list[int]:
    """The number of the draft that each prompt's critic picks. A malformed critique does not stop."""
    picked = [count - 1] * len(drafts)
    firsts = [first_critique(these[0]) for these in drafts]
    open_places = []
    for place, critique in enumerate(firsts):
        if critique is not None and critique.stop:
            picked[place] = 0
        else:
            open_places.append(place)
    for number in range(1, count - 1):  # the last one is taken, whatever is said about it
        shown = FixedDrafts.of(drafts[place][number] for place in open_places)
        said = read(policy, shown, settings, round_seed(seed, number))
        for place, critique in zip(open_places, said, strict=True):
            if critique.stop:
                picked[place] = number
        open_places = [place for place, critique in zip(open_places, said, strict=True) if not critique.stop]
    return picked
