"""What is written and printed of two measurements."""

from __future__ import annotations

import json

import pytest

from r3_rl.evaluate import demo
from r3_rl.evaluate.fixed_sets import Sizes, digest
from r3_rl.evaluate.loop_bench import LoopBench
from r3_rl.evaluate.measured import Measured
from r3_rl.evaluate.results import evaluation_of, print_headline, print_table, write_results
from r3_rl.evaluate.run import RunResult
from r3_rl.observe.ending import Ending
from r3_rl.observe.evaluation import Evaluation
from r3_rl.observe.recorder import Recorder
from r3_rl.observe.text_table import headline_lines
from r3_rl.worlds.base import find_world
from tests.observe.runs import evaluation as made_up
from tests.policy.tiny import loop

NOTHING_ELSE = {name: 0 for name in vars(Sizes(num_prompts=0)) if name != "num_prompts"}
BENCH = LoopBench(world=find_world(), settings=loop(), sizes=Sizes(num_prompts=2, **NOTHING_ELSE))

BEFORE = Measured(
    values={
        "draft": [0.0, 1.0],
        "draft/counting": [0.0, 1.0],
        "draft_greedy": [1.0, 1.0],
        "repair_round_1": [0.0],
        "true_plan_drawn": [1.0, 0.0],
        "entropy_plan": [0.5, 0.75],
    },
    words={"questions/count": "how many"},
)
AFTER = Measured(
    values={
        "draft": [1.0, 1.0],
        "draft/counting": [1.0, 1.0],
        "draft_greedy": [1.0, 0.0],
        "repair_round_1": [1.0, 1.0, 0.0],
        "true_plan_drawn": [1.0, 1.0],
        "entropy_plan": [0.25, 0.25],
    }
)


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Libraries that other tests call write the width of a terminal into the environment."""
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def evaluation():
    return evaluation_of(BENCH, BEFORE, AFTER)


def test_the_files_hold_every_figure_and_the_summary_the_main_ones(evaluation, tmp_path):
    items = BENCH.items()
    write_results(Recorder(tmp_path), evaluation, items=items, seeds=[3], wall_s=1.26)
    document = json.loads((tmp_path / "evaluation.json").read_text())
    assert document.keys() - {"words"} == {"phases", "differences"} and set(document["phases"]) == {"before", "after"}
    assert set(document["phases"]["before"]) == set(BEFORE.values) == set(document["differences"])
    assert document["differences"]["repair_round_1"]["mean"] == pytest.approx(2 / 3)
    assert document["words"] == {"questions/count": "how many"}
    assert Evaluation.from_document(document) == evaluation
    summary = json.loads((tmp_path / "summary.json").read_text())
    plain = {name: value for name, value in summary.items() if not isinstance(value, dict)}
    assert plain == {
        "draft_before": 0.5, "draft_after": 1.0, "draft_greedy_before": 1.0, "draft_greedy_after": 0.5,
        "true_plan_drawn_before": 0.5, "true_plan_drawn_after": 1.0, "entropy_plan_before": 0.625,
        "entropy_plan_after": 0.25, "num_prompts": 2, "seeds": [3], "wall_s": 1.3,
    }  # fmt: skip
    assert summary["draft_greedy_difference"]["mean"] == -0.5 and summary["sets"].keys() == items.texts().keys()
    assert summary["sets"]["prompts"] == digest([prompt.text for prompt in items.prompts])


def test_the_table_has_greedy_above_sampled_and_no_kinds(evaluation, capsys):
    print_table(evaluation)
    lines = capsys.readouterr().out.splitlines()
    assert [(line[:24].strip(), line[24:33].strip()) for line in lines] == [
        ("draft", "greedy"),
        ("", "sampled"),
        ("true_plan_drawn", "once"),
        ("repair_round_1", "sampled"),
        ("entropy_plan", "sampled"),
    ]
    assert "100.0 [" in lines[0] and "-50.0 [" in lines[0] and "+50.0 [" in lines[1]
    assert ".625 [ .500,  .750] nats  ->   .250 [ .250,  .250] nats   -.375 [" in lines[-1]


def test_the_headline_is_greedy_and_the_line_after_it_sampled(evaluation, capsys):
    print_headline(evaluation)
    greedy, sampled = capsys.readouterr().out.splitlines()
    assert greedy == "greedy texts, untrained -> trained, %: draft 100.0 -> 50.0 (-50.0 [-100.0, +0.0])"
    assert sampled == "sampled texts: draft 50.0 -> 100.0; entropy in nats a token: plans 0.62 -> 0.25"


def test_in_a_narrow_terminal_no_line_is_longer_and_no_figure_is_broken(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    measured = Evaluation.from_document(made_up())
    print_table(measured)
    table = capsys.readouterr().out.splitlines()
    assert max(map(len, table)) <= 80
    (at,) = (i for i, line in enumerate(table) if line.startswith("draft "))
    change = measured.differences["draft_greedy"]
    assert f"{100 * measured.before['draft_greedy'].mean:.1f}  ->  " in table[at]
    assert f" {100 * change.mean:+.1f} [" in table[at] and table[at].count("[") == 1, "the change has its interval"
    print_headline(measured)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80 and len(text.splitlines()) > 2
    (whole, sampled) = headline_lines(measured)
    assert " ".join(text.split()) == f"{whole} {sampled}"
    for line in text.splitlines():
        assert line.count("[") == line.count("]") and not line.endswith("->") and not line.strip().startswith("->")


def test_the_last_thing_that_the_demo_prints_is_its_headline(evaluation, capsys, monkeypatch, tmp_path):
    def trained(recipe, **options):
        assert options["headline"] is False and options["limit_s"] == 360
        print("report")
        done = Ending(step=1, num_steps=1, why="done")
        return RunResult(folder=tmp_path, before=None, after=None, ending=done, evaluation=evaluation)

    monkeypatch.setattr(demo, "train", trained)
    demo.demo(out=str(tmp_path / "demo"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("greedy texts, untrained -> trained") and lines[-1].startswith("sampled texts: ")
    assert lines[-3].startswith("demo done in ") and lines[-4].startswith("adapter ")
