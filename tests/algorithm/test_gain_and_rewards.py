from __future__ import annotations

import pytest
import torch

from r3_rl.algorithm import GAINS, Format, advantages, gains, reason_rewards, refine_rewards, text_reward
from r3_rl.errors import InputError

NAN = float("nan")
BEFORE = torch.tensor([0.50, 0.50, 0.50, 0.50, 1.00, 1.00, 1.00, 0.50, NAN, 0.50])
AFTER = torch.tensor([0.75, 0.25, 0.50, NAN, NAN, 1.00, 0.50, NAN, 0.50, float("inf")])
STOPPED = torch.tensor([False, False, False, True, True, False, False, False, False, False])
GROUPS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
EXPECTED = {
    #          better worse  same  stop | stop   same  broken | missing scores
    "paper": [0.25, -0.25, 0.00, 0.00, 1.00, 0.00, 0.00, NAN, NAN, NAN],
    "released": [0.25, -0.25, 0.00, 0.00, 1.00, 0.00, -0.50, NAN, NAN, NAN],
    "repair": [0.25, -0.25, -0.25, 0.00, 1.00, -0.50, -0.50, NAN, NAN, NAN],
}


def test_every_kind_has_its_table():
    assert set(GAINS) == set(EXPECTED)


@pytest.mark.parametrize("kind", sorted(EXPECTED))
def test_gain_by_the_table(kind):
    found = gains(kind, BEFORE, AFTER, STOPPED, GROUPS)
    torch.testing.assert_close(found.values, torch.tensor(EXPECTED[kind]), equal_nan=True)
    assert found.improved.tolist() == [True] + 9 * [False]
    assert found.regressed.nonzero().flatten().tolist() == [1, 6]
    assert torch.equal(found.stopped, STOPPED)


def test_a_panel_that_adds_up_to_one_with_rounding_is_perfect():
    almost = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float32).sum()[None] - 1e-7
    found = gains("paper", almost, torch.tensor([NAN]), torch.tensor([True]), torch.tensor([0]))
    assert found.values.item() == 1


def test_unknown_kinds_and_unlike_lengths_are_refused():
    with pytest.raises(InputError, match="paper, released, repair"):
        gains("papper", BEFORE, AFTER, STOPPED, GROUPS)
    with pytest.raises(InputError, match="one length"):
        gains("paper", BEFORE, AFTER[1:], STOPPED, GROUPS)


@pytest.mark.parametrize(
    ("mode", "weight", "expected"),
    [("gate", 0.5, [1.0, 0.0, NAN, 0.0]), ("gate", 0.0, [0.5, 0.0, NAN, 0.0]), ("add", 0.5, [1.0, 0.5, NAN, NAN])],
)
def test_form_gates_or_adds(mode, weight, expected):
    value, form = torch.tensor([0.5, 0.5, NAN, NAN]), torch.tensor([True, False, True, False])
    found = text_reward(value, form, Format(mode=mode, weight=weight))
    torch.testing.assert_close(found, torch.tensor(expected), equal_nan=True)


def test_rewards_of_the_two_stages_follow_the_table():
    well_formed = torch.tensor([True, False, True])
    score = torch.tensor([0.25, 0.5, NAN])
    reason = reason_rewards(score, well_formed, Format(mode="add", weight=1.0))
    torch.testing.assert_close(reason.text, torch.tensor([1.25, 0.5, NAN]), equal_nan=True)
    torch.testing.assert_close(reason.image, score, equal_nan=True)

    before, after = torch.tensor([0.25, 0.25, 0.25]), torch.tensor([0.75, 0.5, NAN])
    stopped = torch.tensor([False, False, True])
    gained = gains("released", before, after, stopped, torch.zeros(3, dtype=torch.long))
    form = Format(mode="gate", weight=1.0)
    by_gain = refine_rewards(gained, after, well_formed, form)
    by_score = refine_rewards(gained, after, well_formed, form, image="score")
    assert by_gain.text.tolist() == [1.5, 0.0, 1.0]
    assert by_gain.image[:2].tolist() == [0.5, 0.25] and by_score.image[:2].tolist() == [0.75, 0.5]


def test_gain_and_score_give_refinements_of_one_image_the_same_advantage():
    before, after = torch.full((4,), 0.5), torch.tensor([0.75, 0.25, 1.0, NAN])
    stopped, groups = torch.tensor([False, False, False, True]), torch.zeros(4, dtype=torch.long)
    gained = gains("released", before, after, stopped, groups)
    well_formed = torch.ones(4, dtype=torch.bool)
    found = []
    for image in ("gain", "score"):
        rewards = refine_rewards(gained, after, well_formed, Format(weight=1.0), image=image)
        found.append(advantages(rewards.image, groups, applies=~stopped))
    torch.testing.assert_close(found[0].values, found[1].values)
    # a stop drew nothing: no peer of the refinements, no advantage, and no failed scorer either
    assert found[0].values[3] == 0 and not bool(found[0].missing.any()) and not bool(found[1].missing.any())
    assert abs(float(found[0].values[:3].sum())) < 1e-6


@pytest.mark.parametrize("wrong", [{"mode": "multiply"}, {"weight": -1.0}, {"weight": NAN}])
def test_senseless_formats_are_refused(wrong):
    with pytest.raises(InputError):
        Format(**wrong)


def test_an_unknown_image_reward_is_refused():
    gained = gains("paper", BEFORE, AFTER, STOPPED, GROUPS)
    with pytest.raises(InputError, match="gain or score"):
        refine_rewards(gained, AFTER, STOPPED, Format(), image="both")
