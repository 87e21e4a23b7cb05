"""Several drafts of a prompt: how many are drawn, and what picking among them gives."""

from __future__ import annotations

import pytest
import torch

from r3_rl.evaluate import drafting
from r3_rl.evaluate.drafting import in_turns, measure_drafts, sample_drafts
from r3_rl.evaluate.measured import right
from r3_rl.evaluate.reflection import judged
from r3_rl.rollout.engine import run_loop
from tests.evaluate.scripted import BROKEN, EDIT, STOP, Scripted, number_of, settings, trajectory
from tests.evaluate.test_measures import by_brightness
from tests.policy.tiny import PROMPTS, loop, tiny_policy

SAID = {0.0: EDIT, 0.1: STOP, 0.2: BROKEN, 0.3: EDIT}


def drafts_of(*rows):
    """Rows of (total, number) by prompt; the loop has said EDIT about each first one unless its number says STOP."""
    return [[trajectory(total, number=number, said=SAID[number]) for total, number in row] for row in rows]


def critic():
    return Scripted(say=lambda context: SAID[number_of(context)])


def test_the_own_critic_picks_the_first_draft_at_which_it_stops():
    drafts = drafts_of(
        [(0.0, 0.1), (1.0, 0.0), (1.0, 0.0)],  # stops at the first, which is wrong
        [(0.0, 0.0), (1.0, 0.1), (0.0, 0.1)],  # stops at the second
        [(0.0, 0.0), (0.0, 0.2), (1.0, 0.3)],  # a malformed critique does not stop: the last one is taken
        [(0.0, 0.2), (1.0, 0.1), (0.0, 0.0)],  # nor does one about the first
        [(1.0, 0.0), (1.0, 0.0), (0.0, 0.0)],
    )
    policy = critic()
    values = measure_drafts(policy, drafts, settings(), rounds=2, seed=1)
    assert values["best_of_3_own_critic"] == [0.0, 1.0, 1.0, 1.0, 0.0]
    assert values["best_of_3_oracle"] == [1.0, 1.0, 1.0, 1.0, 1.0]
    assert [rows for rows, _ in policy.asked] == [4], "neither the loop's critiques nor the last draft's are written"


def test_the_oracle_looks_at_as_many_images_as_the_loop_may_draw():
    drafts = drafts_of([(0.0, 0.0), (0.0, 0.0), (1.0, 0.0)], [(0.0, 0.0)] * 3)
    values = measure_drafts(critic(), drafts, settings(), rounds=1, seed=1)
    assert values["best_of_2_oracle"] == [0.0, 0.0]
    assert set(measure_drafts(critic(), drafts, settings(), rounds=0, seed=1)) == {"draft_pass_8"}


def test_pass_at_8_counts_a_prompt_if_one_of_eight_is_right(monkeypatch):
    monkeypatch.setattr(drafting, "PASS_PROMPTS", 2)
    eighth = [(0.0, 0.0)] * 7 + [(1.0, 0.0)]
    ninth = [(0.0, 0.0)] * 8 + [(1.0, 0.0)]
    values = measure_drafts(critic(), drafts_of(eighth, ninth, eighth[:3]), settings(), rounds=2, seed=1)
    assert values["draft_pass_8"] == [1.0, 0.0], "the first prompts only, eight drafts of each"


def test_drafts_are_drawn_once_and_no_more_than_needed(monkeypatch):
    monkeypatch.setattr(drafting, "PASS_PROMPTS", 2)
    policy = tiny_policy()
    walked = judged(run_loop(policy, PROMPTS, loop(), rounds=1, seed=2), by_brightness)
    drafts, again = (sample_drafts(policy, walked, loop(), by_brightness, rounds=1, seed=9) for _ in range(2))
    assert [len(these) for these in drafts] == [8, 8, 2]
    assert all(these[0] is first for these, first in zip(drafts, walked, strict=True))
    for these, same in zip(drafts, again, strict=True):
        images = [t.rounds[0].image.image for t in these]
        assert all(torch.equal(a, b.rounds[0].image.image) for a, b in zip(images, same, strict=True))
        assert not any(torch.equal(a, b) for i, a in enumerate(images) for b in images[:i]), "drafts of their own"
        assert all(t.prompt is these[0].prompt for t in these)
        assert all(right(t.rounds[0].verdict) == float(t.rounds[0].image.image[0, 0, 0] > 0.5) for t in these)


@pytest.mark.parametrize("rounds", [2, 9])
def test_a_longer_loop_is_compared_with_more_drafts(rounds):
    policy = tiny_policy()
    walked = judged(run_loop(policy, PROMPTS[:1], loop(), rounds=0, seed=2), by_brightness)
    (these,) = sample_drafts(policy, walked, loop(), by_brightness, rounds=rounds, seed=9)
    assert len(these) == max(8, rounds + 1)


def test_in_turns_takes_a_first_draft_of_each_prompt_before_any_second():
    drafts = drafts_of([(1.0, 0.0), (1.0, 0.1)], [(1.0, 0.2)], [(1.0, 0.3), (0.0, 0.1), (0.0, 0.2)])
    order = [float(t.rounds[0].image.image[0, 0, 0]) for t in in_turns(drafts)]
    assert order == pytest.approx([0.0, 0.2, 0.3, 0.1, 0.1, 0.2])
    assert in_turns([]) == []
