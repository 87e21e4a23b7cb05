from __future__ import annotations

import pytest
import torch

from r3_rl.algorithm import GAINS, gains, text_reward
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
    found = text_reward(value, form, mode=mode, weight=weight)
    torch.testing.assert_close(found, torch.tensor(expected), equal_nan=True)


@pytest.mark.parametrize("wrong", [{"mode": "multiply"}, {"weight": -1.0}, {"weight": NAN}])
def test_senseless_formats_are_refused(wrong):
    with pytest.raises(InputError):
        text_reward(torch.zeros(1), torch.ones(1, dtype=torch.bool), **wrong)
