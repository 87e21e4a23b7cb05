from __future__ import annotations

import pytest
import torch

from r3_rl.algorithm import advantages
from r3_rl.errors import InputError

NAN, INF = float("nan"), float("inf")
TOLERANCE = {"rtol": 2e-6, "atol": 2e-6}


def one_group(rewards):
    return torch.tensor(rewards), torch.zeros(len(rewards), dtype=torch.long)


@pytest.mark.parametrize(
    ("project", "key", "options"),
    [
        ("r3", "advantages", {"scale": "none"}),
        ("r3", "advantages_if_divide_std", {"scale": "group", "eps": 1e-6}),
        ("mixgrpo", "advantages", {"scale": "group", "eps": 1e-8}),
    ],
)
def test_recorded_groups(recorded, project, key, options):
    if not recorded.get(project):
        pytest.skip(f"the golden set holds no case of {project}")
    for case in recorded[project]:
        found = advantages(*one_group(case["rewards"]), **options)
        torch.testing.assert_close(found.values, torch.tensor(case[key]), **TOLERANCE)


def test_recorded_batches_of_flow_grpo(recorded):
    if not recorded.get("flow_grpo"):
        pytest.skip("the golden set holds no case of flow_grpo")
    for case in recorded["flow_grpo"]:
        names = sorted(set(case["prompts"]))
        groups = torch.tensor([names.index(prompt) for prompt in case["prompts"]])
        scale = "batch" if case["global_std"] else "group"
        found = advantages(torch.tensor(case["rewards"]), groups, scale=scale, unbiased=False, eps=1e-4)
        torch.testing.assert_close(found.values, torch.tensor(case["advantages"]), **TOLERANCE)


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_equal_rewards_give_exactly_nothing(scale):
    # 0.1 is no binary fraction: its mean over three differs from it by rounding, which no scale may blow up
    rewards = torch.tensor([0.1, 0.1, 0.1 + 3e-8, 0.0, 1.0, 0.7])
    found = advantages(rewards, torch.tensor([9, 9, 9, 4, 4, 6]), scale=scale, eps=0.0)
    assert found.values[[0, 1, 2, 5]].tolist() == [0, 0, 0, 0]
    assert found.values[4] > 0 > found.values[3]
    assert found.num_groups == 3


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
@pytest.mark.parametrize("gone", [NAN, INF, -INF])
def test_missing_rewards_are_as_if_they_had_never_been(scale, gone):
    rewards, groups = torch.tensor([0.0, gone, 0.5, 1.0, gone, 0.25]), torch.tensor([0, 0, 0, 1, 1, 1])
    found = advantages(rewards, groups, scale=scale)
    there = [0, 2, 3, 5]
    without = advantages(rewards[there], groups[there], scale=scale)
    assert torch.equal(found.values[there], without.values)
    assert found.values[[1, 4]].tolist() == [0, 0]
    assert found.reward_mean == without.reward_mean and found.reward_std == without.reward_std


def test_a_failed_scorer_is_no_zero():
    as_missing = advantages(*one_group([1.0, 0.8, NAN])).values
    as_zero = advantages(*one_group([1.0, 0.8, 0.0])).values
    assert as_missing[1] < 0 < as_zero[1]


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_nothing_at_all_is_still_an_answer(scale):
    found = advantages(torch.full((3,), NAN), torch.tensor([0, 0, 1]), scale=scale)
    assert found.values.tolist() == [0, 0, 0]
    assert found.reward_mean != found.reward_mean
    assert advantages(torch.empty(0), torch.empty(0, dtype=torch.long), scale=scale).values.shape == (0,)


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_order_of_rollouts_and_names_of_groups_do_not_matter(scale):
    generator = torch.Generator().manual_seed(1)
    rewards, groups = torch.rand(12, generator=generator), torch.arange(12) % 3
    shuffle = torch.randperm(12, generator=generator)
    plain = advantages(rewards, groups, scale=scale).values
    shuffled = advantages(rewards[shuffle], 100 - 7 * groups[shuffle], scale=scale).values
    torch.testing.assert_close(shuffled, plain[shuffle])


def test_group_scale_has_unit_std_and_batch_scale_one_divisor():
    rewards, groups = torch.tensor([0.0, 1.0, 0.4, 0.6]), torch.tensor([0, 0, 1, 1])
    by_group = advantages(rewards, groups, scale="group", eps=0.0)
    torch.testing.assert_close(by_group.values, torch.tensor([-1.0, 1.0, -1.0, 1.0]) / 2**0.5)
    by_batch = advantages(rewards, groups, scale="batch", eps=0.0)
    torch.testing.assert_close(by_batch.values, torch.tensor([-0.5, 0.5, -0.1, 0.1]) / rewards.std())
    assert by_batch.reward_std == pytest.approx(float(rewards.std()))
    assert by_group.reward_std == pytest.approx((0.5**0.5 + 0.02**0.5) / 2)


def test_senseless_input_is_refused_with_the_fix():
    rewards, groups = one_group([0.0, 1.0])
    with pytest.raises(InputError, match="none, group, batch"):
        advantages(rewards, groups, scale="std")
    with pytest.raises(InputError, match="one length"):
        advantages(rewards, groups[:1])
