"""A bench of another package: one file and one line."""

from __future__ import annotations

import importlib
import json

import pytest

from r3_rl.errors import InputError
from r3_rl.evaluate.base import bench_of, find_bench
from r3_rl.evaluate.loop_bench import LoopBench
from r3_rl.evaluate.results import evaluation_of, print_table, write_results
from r3_rl.observe.recorder import Recorder
from r3_rl.recipe import Recipe
from r3_rl.recipe_io import load_recipe
from tests.policy.tiny import tiny_policy

BENCH = '''
from dataclasses import dataclass
from r3_rl.assemble import loop_settings
from r3_rl.evaluate.measured import Measured
from r3_rl.types import Prompt, Verdict

@dataclass
class Items:
    prompts: list
    seed: int
    def texts(self):
        return {"prompts": [p.text for p in self.prompts]}

class Length:
    """How many plans are at most `longest` tokens long."""
    rounds = 0
    def __init__(self, recipe, longest=3):
        self.settings, self.longest = loop_settings(recipe.rollout), longest
    def items(self, limit=None, seed=0):
        return Items([Prompt(text=f"a {c} circle") for c in ("red", "blue", "green")][:limit], seed)
    def run(self, policy, items):
        contexts = [self.settings.protocol.reason_context(p) for p in items.prompts]
        plans = policy.write(contexts, self.settings.plan, range(items.seed, items.seed + len(contexts)))
        return Measured(values={"short_plan": [float(len(p.token_ids) <= self.longest) for p in plans]}, items=items)
    def figures(self, rows):
        return rows.intervals()
    def judge(self, images, prompts):
        return [Verdict(total=None) for _ in images]
'''


@pytest.fixture
def installed(tmp_path, monkeypatch):
    info = tmp_path / "length_bench-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: length_bench\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[r3_rl.benches]\nlength = length_bench:Length\n")
    (tmp_path / "length_bench.py").write_text(BENCH)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


def test_a_strangers_bench_is_found_measured_and_written(installed, tmp_path, capsys):
    recipe = load_recipe("shapes_r3", ["rollout.plan.max_new_tokens=6"])
    bench = find_bench("length", recipe, longest=6)
    items = bench.items(limit=2)
    before = bench.run(tiny_policy(), items)
    assert bench.figures(before)["short_plan"].count == 2 and bench.figures(before)["short_plan"].mean == 1
    evaluation = evaluation_of(bench, before, bench.run(tiny_policy(), before.items))
    (tmp_path / "run").mkdir()
    write_results(Recorder(tmp_path / "run"), evaluation, items=before.items, seeds=[0], wall_s=1.0)
    assert evaluation.differences["short_plan"].mean == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["num_prompts"] == 2 and set(summary["sets"]) == {"prompts"}
    document = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert document["phases"]["after"]["short_plan"]["count"] == 2
    print_table(evaluation)
    assert "short_plan" in capsys.readouterr().out


def test_a_world_names_its_bench_and_a_file_has_none(tmp_path):
    found = bench_of(load_recipe("shapes_r3"), num_plans=5)
    assert isinstance(found, LoopBench) and (found.sizes.num_prompts, found.sizes.num_plans) == (300, 5)
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a red cup"}\n')
    data = {"kind": "jsonl", "path": str(file)}
    assert bench_of(Recipe.model_validate({"version": 1, "rewards": [{"scorer": "length"}], "data": data})) is None


def test_an_unknown_bench_is_told_the_closest():
    with pytest.raises(InputError, match=r"'lop' is not in r3_rl\.benches; did you mean 'loop'"):
        find_bench("lop", load_recipe("shapes_r3"))
