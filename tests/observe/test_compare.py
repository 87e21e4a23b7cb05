"""`r3 compare`: figures of several runs stand side by side only where they say the same thing."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from r3_rl.errors import InputError
from r3_rl.observe.compare import compare
from r3_rl.observe.ending import Ending
from r3_rl.observe.statistics import over_seeds, share, unpaired_difference
from tests.observe.runs import evaluation

SETS = {"prompts": "p", "wrong": "w", "right": "r", "questions": "q"}
RECIPE = (
    "algorithm: {schedule: tree}\nrewards:\n- {scorer: shapes, weight: 1.0}\nlora: {targets: [a, b]}\n"
    "training: {seed: 0, output_dir: runs/a}\n"
)


@pytest.fixture
def made(finished_run: Path, tmp_path: Path):
    """Copies of a finished run with another recipe, other sets, another change of the drafts."""

    def run(name, *changes, sets=SETS, draft=None):
        folder = tmp_path / name
        shutil.copytree(finished_run, folder)
        recipe = RECIPE.replace("runs/a", str(folder))
        for old, new in changes:
            assert old in recipe
            recipe = recipe.replace(old, new)
        (folder / "recipe.resolved.yaml").write_text(recipe)
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps({**summary, "sets": sets}))
        if draft is not None:
            measured = json.loads((folder / "evaluation.json").read_text())
            measured["differences"]["draft"]["mean"] = draft
            (folder / "evaluation.json").write_text(json.dumps(measured))
        return folder

    return run


def test_a_recipe_that_was_changed_on_resume_is_shown(made, r3):
    a, b = made("a"), made("b")
    row = {"step": 40, "recipe": "recipe.change-1.yaml", "changes": {"training.learning_rate": [0.002, 0.001]}}
    (b / "recipe.changes.jsonl").write_text(json.dumps(row) + "\n")
    (b / "ended.json").write_text(json.dumps(Ending(step=60, num_steps=160, why="clock").document()))
    lines = r3("compare", str(a), str(b)).out.splitlines()
    assert lines[1].startswith(f"run 2  {b}  (seed 0, 320 held-out prompts, ended at step 60 of 160, ")
    assert lines[2] == "       changed when it was resumed, from step 40 on training.learning_rate: 0.002 -> 0.001"
    r3("report", str(b))
    page = (b / "report.html").read_text()
    assert "Changed when the run was resumed:" in page
    assert "from step 40 on training.learning_rate: 0.002 -&gt; 0.001" in page


def test_settings_and_figures_stand_side_by_side(made, r3):
    a, b = made("a"), made("b", ("tree", "full"), ("weight: 1.0", "weight: 0.5"), draft=0.125)
    done = r3("compare", str(a), str(b))
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith(f"run 1  {a}  (seed 0, 320 held-out prompts, 4 min 31 s)")
    rows = {line.split()[0]: line.split()[1:] for line in lines[3:6]}
    assert rows == {
        "setting": ["run", "1", "run", "2"],
        "algorithm.schedule": ["tree", "full"],
        "rewards.0.weight": ["1.0", "0.5"],
    }
    measured = json.loads((a / "evaluation.json").read_text())
    (greedy, at) = (i for i, line in enumerate(lines) if line.startswith(("draft ", "draft_greedy ")))
    assert lines[greedy].startswith("draft_greedy ") and at == greedy + 2, "greedy first, then sampled"
    for phase in ("before", "after"):
        mean, low, high = (100 * measured["phases"][phase]["draft"][key] for key in ("mean", "low", "high"))
        assert f"{mean:5.1f} [{low:5.1f}, {high:5.1f}]" in lines[at]
    assert "run 1" in lines[at] and "run 2" in lines[at + 1] and "+12.5 [" in lines[at + 1]
    (swap,) = (line for line in lines if line.startswith("swap_own_critic_edits"))
    assert swap.split()[3] == "-" == swap.split()[-1], "measured after training alone"
    assert not any("/" in line.split()[0] for line in lines[at:] if line and not line.startswith(" "))
    assert "over the seeds" not in done.out


def test_runs_that_differ_in_their_seed_alone_are_joined(made):
    text = compare([made("a", draft=0.1), made("b", ("seed: 0", "seed: 1"), draft=0.2)])
    lines = text.splitlines()
    (at,) = (i for i, line in enumerate(lines) if line.startswith("draft "))
    line, joined = lines[at + 2], over_seeds([0.1, 0.2])
    assert "over the seeds" in line and f"+15.0 [{100 * joined.low:+5.1f}, {100 * joined.high:+5.1f}]" in line
    assert "No setting differs." in compare([made("c"), made("d")])


def test_entropies_are_in_nats_and_figures_of_own_items_stay(made):
    sets = {**SETS, "pairs": "a"}
    text = compare([made("a", sets=sets), made("b", sets={**sets, "pairs": "b"})])
    (entropy, *_) = (line for line in text.splitlines() if line.startswith("entropy_plan"))
    mean = json.loads((made("c") / "evaluation.json").read_text())["phases"]["before"]["entropy_plan"]["mean"]
    assert entropy.split()[3] == f"{mean:.3f}".removeprefix("0") and entropy.count(" nats") == 3
    assert "\nrepair_round_1 " in text and "\nita_fixed" in text
    assert "Other items in each run (pairs)" in text


def test_runs_from_before_greedy_figures_compare_where_both_say_the_same(made):
    """Their questions were read greedily: no sampled figure of another run may be next to them."""
    new, old = made("a"), made("b")
    (old / "evaluation.json").write_text(json.dumps(evaluation(old=True)))
    lines = compare([new, old]).splitlines()
    (at,) = (i for i, line in enumerate(lines) if line.startswith("questions_greedy"))
    asked = evaluation(old=True)["phases"]["before"]["questions"]["mean"]
    assert f"{100 * asked:.1f} [" in lines[at + 1]
    assert "[" in lines[at + 2] and lines[at + 3].split()[2:] == ["-", "-", "-"]
    (draft,) = (i for i, line in enumerate(lines) if line.startswith("draft_greedy"))
    assert lines[draft + 1].split() == ["run", "2", "-", "-", "-"]


def test_other_fixed_sets_are_left_out_and_said_to_be(made):
    text = compare([made("a"), made("b", sets={**SETS, "wrong": "others"})])
    assert "\nwrong_drafts_edited" not in text and "\nright_drafts_kept" in text
    assert "different sets (wrong): wrong_drafts_edited, wrong_drafts_repaired." in text


def test_what_cannot_be_compared_is_refused(made, finished_run, tmp_path):
    a, other = made("a"), made("b", ("training:", "data: {kind: shapes, tags: [counting]}\ntraining:"))
    with pytest.raises(InputError, match=r"b was measured on another task than .*'shapes' \(counting\)"):
        compare([a, other])
    with pytest.raises(InputError, match="nothing to compare with"):
        compare([a])
    with pytest.raises(InputError, match="no run folder at"):
        compare([a, tmp_path / "gone"])
    with pytest.raises(InputError, match="not said on which sets"):
        compare([a, finished_run])
    (other / "evaluation.json").unlink()
    with pytest.raises(InputError, match="not measured before and after"):
        compare([a, other])


def keep_values(folder, count, *, moved=0):
    """Values of a run on the first of the same prompts: every third draft right before, every second one after."""
    names = [f"prompt-{moved + i}" for i in range(count)]
    phases = {
        phase: {name: [float(i % every == 0) for i in range(count)] for name in ("draft", "draft_greedy")}
        for phase, every in (("before", 3), ("after", 2))
    }
    (folder / "values.json").write_text(json.dumps({"items": {"prompts": names}, "phases": phases}))


def test_a_set_that_begins_with_the_other_is_compared_on_what_they_share(made):
    demo, recipe = made("demo"), made("recipe", ("tree", "full"), sets={**SETS, "prompts": "first 300"})
    keep_values(demo, 320)
    keep_values(recipe, 300)
    text = compare([demo, recipe])
    lines = text.splitlines()
    (at,) = (i for i, line in enumerate(lines) if line.startswith("draft "))
    shown = share([float(i % 2 == 0) for i in range(300)])
    for line in lines[at : at + 2]:
        assert f"{100 * shown.mean:5.1f} [{100 * shown.low:5.1f}, {100 * shown.high:5.1f}]" in line, "the first 300"
    assert "Of 'prompts' the first 300 are compared, which all runs were measured on." in text
    (line,) = (line for line in lines if line.startswith("run 2 - run 1  draft "))
    assert line.split()[-4:] == ["paired,", "n", "=", "300"] and " +0.0 [ +0.0,  +0.0]" in line


def test_other_prompts_of_the_same_kinds_are_compared_unpaired_and_wider(made):
    one, other = made("a"), made("b", ("tree", "full"), sets={**SETS, "prompts": "others"})
    keep_values(one, 300)
    keep_values(other, 300, moved=7)
    text = compare([one, other])
    assert "Other items in each run (prompts): each has its own figures, and differences are unpaired" in text
    measured = json.loads((one / "evaluation.json").read_text())["phases"]["after"]["draft"]
    cases = [1.0] * round(measured["mean"] * measured["count"])
    cases += [0.0] * (measured["count"] - len(cases))
    wide = unpaired_difference(cases, cases)
    (line,) = (line for line in text.splitlines() if line.startswith("run 2 - run 1  draft "))
    assert line.endswith("unpaired") and f"[{100 * wide.low:+5.1f}, {100 * wide.high:+5.1f}]" in line
    old = compare([made("c"), made("d", ("tree", "full"), sets={**SETS, "prompts": "others"})])
    assert "run 2 - run 1  draft " in old, "runs that kept no values too"


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_the_same_figures_are_written_for_other_programs(made, tmp_path, r3, kind):
    one, other = made("a"), made("b", ("tree", "full"))
    for run, moved in ((one, 0), (other, 7)):
        keep_values(run, 320, moved=moved)
    file = tmp_path / f"compared.{kind}"
    text = r3("compare", str(one), str(other), "--out", str(file)).out
    assert text.endswith(f"figures in {file}\n") and compare([one, other]) in text
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines)) if kind == "csv" else json.load(lines)
    drafts = [row for row in rows if row["figure"] == "draft"]
    assert [(row["run"], str(row["seed"]), row["unit"]) for row in drafts] == [
        (str(run), "0", "share") for run in (one, other)
    ]
    for run, row in zip((one, other), drafts, strict=True):
        phases = json.loads((run / "evaluation.json").read_text())["phases"]
        for phase in ("before", "after"):
            found = [float(row[f"{phase}_{part}"]) for part in ("mean", "low", "high", "n")]
            assert found == pytest.approx([phases[phase]["draft"][key] for key in ("mean", "low", "high", "count")])
    assert drafts[0]["minus_first_mean"] in (None, "") and float(drafts[1]["minus_first_low"]) < 0
    assert {row["unit"] for row in rows if row["figure"].startswith("entropy")} == {"nats"}
    assert any("/" in row["figure"] for row in rows), "kinds too"


def test_a_comparison_that_cannot_be_written_is_refused_before_anything_is_read(made, tmp_path, r3):
    one, other = made("a"), made("b")
    for file, said in (("x.xlsx", "is written as .csv or .json"), ("no/x.csv", "no folder")):
        found = r3("compare", str(one), str(other), "--out", str(tmp_path / file))
        assert found.code == 2 and said in found.err and not found.out
