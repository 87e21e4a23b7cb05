"""What `r3 rewards new` wrote is trained on as it stands, beside a scorer that is only looked at."""

from __future__ import annotations

from r3_rl.evaluate.base import bench_of
from r3_rl.evaluate.run import train
from r3_rl.observe.recorder import read_lines
from r3_rl.recipe_io import load_recipe
from tests.docs.world import world_folder

RECIPE = """
extends: shapes_r3
rewards:
  - scorer: ./my_score.py:my_score
    weight: 2.0
    params: {threshold: 0.4}
  - scorer: shapes
eval_rewards:
  - scorer: shapes_strict
  - {scorer: "./my_score.py:my_score", name: plain}
"""
SMALL = [
    "rollout.num_prompts=2",
    "rollout.branch={plan: 2, critique: 2}",
    "rollout.draft.num_steps=2",
    "rollout.refine.num_steps=2",
    "rollout.draft.window_size=null",
    "rollout.refine.window_size=null",
    "rollout.plan.max_new_tokens=4",
    "rollout.critique.max_new_tokens=4",
    "rollout.rounds=1",
    "algorithm.schedule=draft_only",
    "training.max_steps=2",
    "observe.gallery=0",
]


def test_a_new_scorer_is_trained_on(workplace, r3):
    base = world_folder(workplace / "base")
    assert r3("rewards", "new", "my_score").code == 0
    (workplace / "mine.yaml").write_text(RECIPE)
    checked = r3("check", "mine.yaml", f"model.path={base}", *SMALL)
    assert checked.code == 0, checked.err
    recipe = load_recipe("mine.yaml", [f"model.path={base}", *SMALL])
    bench = bench_of(recipe, num_prompts=2, num_fixed=2, num_right=2, num_questions=2)
    folder = train(recipe, bench=bench, name="mine").folder
    rows = read_lines(folder / "metrics.jsonl").rows
    assert len(rows) == 2
    for row in rows:
        assert row["weighted_rewards/my_score/mean"] == 2 * row["rewards/my_score/mean"]
        assert {"rewards/shapes/mean", "eval_rewards/shapes_strict/mean", "eval_rewards/plain/mean"} <= row.keys()
        assert row["reward"] <= row["rewards/shapes/mean"] + 2 * row["rewards/my_score/mean"] + 1e-6
    assert any(row["rewards/my_score/mean"] > 0 for row in rows)
    report = (folder / "report.html").read_text()
    assert "Held-out scorers" in report and "shapes_strict" in report and "my_score" in report
