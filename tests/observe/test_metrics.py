import math
from pathlib import Path

import numpy as np
import pytest
import torch

from r3_rl.observe.metrics import METRICS, Averages, find_metric, metrics_page, unknown_names

ROOT = Path(__file__).parents[2]


def test_the_page_in_the_docs_is_the_table():
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == metrics_page()


def test_names_are_unique_and_weighted_and_raw_scores_never_share_one():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    raw, weighted = find_metric("rewards/shapes/mean"), find_metric("weighted_rewards/shapes/mean")
    assert raw is not None and weighted is not None and raw.name != weighted.name


@pytest.mark.parametrize(
    "name",
    ["reward", "reward_std", "frac_reward_zero_std", "rewards/x/mean", "rewards/x/std", "kl", "entropy", "grad_norm",
     "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "completions/mean_length"],
)  # fmt: skip
def test_trl_names_are_kept(name):
    assert find_metric(name) is not None


def test_patterns_match_one_part_of_a_name_only():
    assert unknown_names(["time/draft_s", "eval_rewards/a/mean", "rewards/a/b/mean", "rewards//mean", "zz"]) == [
        "rewards//mean",
        "rewards/a/b/mean",
        "zz",
    ]


def test_micro_batches_of_unlike_size_average_as_one_batch():
    values = np.random.default_rng(0).random(12)
    averages = Averages()
    for part in (values[:2], values[2:9], values[9:]):
        averages.add({"kl": part.mean(), "time/draft_s": 0.5, "tree/pool_size": part.size}, weight=part.size)
    combined = averages.pop()
    assert combined["kl"] == pytest.approx(values.mean())
    assert combined["time/draft_s"] == pytest.approx(1.5)
    assert combined["tree/pool_size"] == 3


def test_missing_values_and_empty_micro_batches_enter_nothing():
    averages = Averages()
    averages.add({"kl": None, "reward": torch.tensor(0.5)}, weight=4)
    averages.add({"reward": 100.0}, weight=0)
    assert averages.pop() == {"reward": 0.5}


def test_values_that_are_not_finite_stay_visible():
    averages = Averages()
    averages.add({"kl": 1.0, "ratio/text_deviation": 0.5})
    averages.add({"kl": float("inf"), "ratio/text_deviation": float("nan")})
    combined = averages.pop()
    assert math.isinf(combined["kl"]) and math.isnan(combined["ratio/text_deviation"])
