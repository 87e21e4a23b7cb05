import math
from pathlib import Path

import numpy as np
import pytest
import torch

from r3_rl.observe.metrics import METRICS, find_metric, metrics_page, unknown_names
from r3_rl.observe.numbers import Numbers, combine

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


def test_ranks_of_different_size_average_as_one_batch():
    values = np.random.default_rng(0).random(12)
    parts = (values[:2], values[2:9], values[9:])
    found = combine(
        [Numbers({"kl": p.mean(), "tree/pool_size": p.size, "time/draft_s": p.size}, {"kl": p.size}) for p in parts],
        over="ranks",
    )
    assert found["kl"] == pytest.approx(values.mean()) and found.sizes == {"kl": 12}
    assert found["tree/pool_size"] == 12 and found["time/draft_s"] == 7, "side by side they take as long as the slowest"


def test_the_three_ways_of_combining_are_three():
    """Losses add up within a step and not over steps; rounds take their time one after the other, ranks together."""
    parts = [
        Numbers({"loss": 1.0, "time/draft_s": 3.0, "kl": 0.0}, {"kl": 1}),
        Numbers({"loss": 0.5, "time/draft_s": 2.0, "kl": 1.0}, {"kl": 3}),
    ]
    assert dict(combine(parts, over="batches")) == {"loss": 1.5, "time/draft_s": 5.0, "kl": 0.75}
    assert dict(combine(parts, over="ranks")) == {"loss": 1.5, "time/draft_s": 3.0, "kl": 0.75}
    assert dict(combine(parts, over="steps")) == {"loss": 0.75, "time/draft_s": 2.5, "kl": 0.5}


def test_what_is_counted_adds_up_and_peaks_and_seconds_do_not():
    """Seconds of two ranks are not twice the seconds, nor is the longest text of two the sum of both."""
    rules = {metric.name: metric.ranks for metric in METRICS}
    losses = {name for name in rules if name == "loss" or name.endswith("/loss")}
    assert {name for name, how in rules.items() if how == "sum"} == {
        "image/count", "num_tokens", "tree/pool_size", *losses,
    }  # fmt: skip
    most = {m.name for m in METRICS if m.unit in ("s", "bytes") or "max" in m.name or "deviation" in m.name}
    assert {name for name, how in rules.items() if how == "max"} == most


def test_a_line_of_several_steps_speaks_of_one_step():
    steps = [
        Numbers({"time/step_s": 2.0, "time/refine_s": 1.0, "image/count": 8, "num_tokens": 9}, {"image/count": 5}),
        Numbers({"time/step_s": 4.0, "image/count": 6, "num_tokens": 12}),
    ]
    assert dict(combine(steps, over="steps")) == {
        "time/step_s": 3.0, "time/refine_s": 0.5, "image/count": 7.0, "num_tokens": 12.0,
    }  # fmt: skip


def test_missing_values_and_empty_parts_enter_nothing():
    parts = [Numbers({"kl": None, "reward": torch.tensor(0.5)}), Numbers({"reward": 100.0}, {"reward": 0})]
    assert dict(combine(parts, over="batches")) == {"reward": 0.5}
    assert dict(combine([], over="ranks")) == {}


def test_of_a_name_in_both_the_later_value_and_size_hold():
    found = (
        Numbers({"kl": 1.0, "reward": 2.0}, {"kl": 3, "reward": 4}) | Numbers({"kl": 5.0}, {"kl": 6}) | {"reward": 7.0}
    )
    assert dict(found) == {"kl": 5.0, "reward": 7.0} and found.sizes == {"kl": 6}
    assert {name: value for name, value in found.items() if name != "kl"} == {"reward": 7.0}


@pytest.mark.parametrize("over", ["batches", "ranks", "steps"])
def test_values_that_are_not_finite_stay_visible(over):
    rows = [{"kl": 1.0, "ratio/text_deviation": 0.5}, {"kl": float("inf"), "ratio/text_deviation": float("nan")}]
    found = combine([Numbers(row) for row in rows], over=over)
    assert math.isinf(found["kl"]) and math.isnan(found["ratio/text_deviation"])
