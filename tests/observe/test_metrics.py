import math
from pathlib import Path

import numpy as np
import pytest
import torch

from r3_rl.observe.metrics import METRICS, Averages, combine, find_metric, metrics_page, unknown_names

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


def test_processes_of_unlike_size_average_as_one_batch():
    values = np.random.default_rng(0).random(12)
    parts = (values[:2], values[2:9], values[9:])
    rows = [{"kl": part.mean(), "tree/pool_size": part.size, "time/draft_s": part.size} for part in parts]
    found = combine(rows, [{"kl": part.size} for part in parts])
    assert found["kl"] == pytest.approx(values.mean())
    assert found["tree/pool_size"] == 12 and found["time/draft_s"] == 7, "side by side they take as long as the slowest"


def test_what_is_counted_adds_up_and_peaks_and_seconds_do_not():
    """Seconds of two processes are not twice the seconds, nor is the longest text of two the sum of both."""
    rules = {metric.name: metric.combine for metric in METRICS}
    assert {name for name, how in rules.items() if how == "sum"} == {"image/count", "tree/pool_size"}
    most = {m.name for m in METRICS if m.unit in ("s", "bytes") or "max" in m.name or "deviation" in m.name}
    assert {name for name, how in rules.items() if how == "max"} == {*most, "num_tokens"}


def test_a_line_of_several_steps_speaks_of_one_step():
    averages = Averages()
    for step in ({"time/step_s": 2.0, "time/refine_s": 1.0, "image/count": 8}, {"time/step_s": 4.0, "image/count": 6}):
        averages.add(step)
    assert averages.pop() == {"time/step_s": 3.0, "time/refine_s": 0.5, "image/count": 7.0}


def test_missing_values_and_empty_parts_enter_nothing():
    assert combine([{"kl": None, "reward": torch.tensor(0.5)}, {"reward": 100.0}], [{}, {"reward": 0}]) == {
        "reward": 0.5
    }


def test_values_that_are_not_finite_stay_visible():
    rows = [{"kl": 1.0, "ratio/text_deviation": 0.5}, {"kl": float("inf"), "ratio/text_deviation": float("nan")}]
    averages = Averages()
    for row in rows:
        averages.add(row)
    for found in (combine(rows), averages.pop()):
        assert math.isinf(found["kl"]) and math.isnan(found["ratio/text_deviation"])
