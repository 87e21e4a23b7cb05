"""Which run goes on, from where, and what of its recipe may change (traps 17 and 30)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from r3_rl import cli
from r3_rl.errors import CheckpointError, InputError, RecipeError
from r3_rl.evaluate.resume import CHANGES, Place, Resumed, find_place, record_changes, recorded, resume
from r3_rl.observe.recorder import Recorder
from r3_rl.recipe import Recipe
from r3_rl.recipe_io import dump_resolved, load_recipe
from r3_rl.training.manifest import aside, complete


def shapes(*overrides):
    return load_recipe("shapes_r3", list(overrides))


@pytest.fixture
def runs(tmp_path):
    """Two runs of one recipe and one of another, with checkpoints 2 and 4; the second one saved last."""
    for when, name in enumerate(("mine", "other", "mine-2", "empty")):
        folder = tmp_path / name / "checkpoints"
        folder.mkdir(parents=True)
        (folder.parent / "recipe.resolved.yaml").write_text(dump_resolved(shapes()))
        for step in (2, 4) if name != "empty" else ():
            partial = aside(folder / f"checkpoint-{step}")
            (partial / "file").write_text("text")
            complete(partial, folder / f"checkpoint-{step}", step=step, num_processes=1)
        os.utime(folder, (when, when))
    return tmp_path


@pytest.mark.parametrize(
    ("where", "name", "run", "checkpoint"),
    [
        ("latest", "mine", "mine-2", None),
        ("latest", "other", "other", None),
        ("latest", None, "mine-2", None),
        ("mine", "other", "mine", None),
        ("{runs}/mine", "other", "mine", None),
        ("{runs}/mine/checkpoints/checkpoint-2", "other", "mine", "checkpoint-2"),
        ("{runs}/mine/checkpoint-2", "other", "mine", "checkpoint-2"),
        ("mine/checkpoint-4", None, "mine", "checkpoint-4"),
        ("checkpoint-2", "mine", "mine-2", "checkpoint-2"),
    ],
)
def test_a_run_and_its_checkpoint_are_named_in_many_ways(runs, where, name, run, checkpoint):
    found = find_place(where.format(runs=runs), runs=runs, name=name)
    assert found.run == runs / run
    assert found.checkpoint == (runs / run / "checkpoints" / checkpoint if checkpoint else None)


@pytest.mark.parametrize(
    ("where", "name", "said"),
    [
        ("nowhere", "mine", "no run folder at nowhere.*the runs there: empty, mine, mine-2, other"),
        ("latest", "third", "no run of third with a checkpoint"),
        ("checkpoint-3", "mine", "mine-2 has no checkpoint-3; its checkpoints: checkpoint-2, checkpoint-4"),
        ("mine/checkpoint-3", None, "mine has no checkpoint-3"),
    ],
)
def test_what_is_not_there_is_a_line_that_says_what_is(runs, where, name, said):
    with pytest.raises(InputError, match=said):
        find_place(where, runs=runs, name=name)


def test_an_unchanged_recipe_goes_on_from_the_newest(runs, capsys):
    found = resume(Place(run=runs / "mine"), shapes("training.output_dir=elsewhere"))
    assert found.checkpoint.step == 4 and not found.changes
    assert "from step" not in capsys.readouterr().out


def test_a_damaged_checkpoint_that_was_named_is_refused_with_the_one_before(runs):
    place = Place(run=runs / "mine", checkpoint=runs / "mine" / "checkpoints" / "checkpoint-4")
    (runs / "mine" / "checkpoints" / "checkpoint-4" / "file").write_text("TEXT")
    with pytest.raises(CheckpointError, match=r"checkpoint-4 is damaged: .*; --resume .*checkpoint-2 is whole"):
        resume(place, shapes())
    (runs / "mine" / "checkpoints" / "checkpoint-2" / "file").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint before it is whole"):
        resume(place, shapes())
    with pytest.raises(CheckpointError, match=r"checkpoint-4 is damaged: .*no checkpoint before it is whole"):
        resume(Place(run=runs / "mine"), shapes())


@pytest.mark.parametrize(
    "override",
    ["training.seed=7", "rewards.0.weight=0.5", "data.seed=3", "model.dtype=bfloat16", "rewards.0.name=mine"],
)
def test_what_a_run_is_about_changes_only_on_request(runs, override, capsys):
    key, _, value = override.partition("=")
    with pytest.raises(RecipeError, match=rf"^{key}: .* -> {value}: would be another run.*--allow-changes$"):
        resume(Place(run=runs / "mine"), shapes(override))
    assert resume(Place(run=runs / "mine"), shapes(override), allow_changes=True).checkpoint.step == 4
    assert f"changed from step 4 on:\n  {key}: " in capsys.readouterr().out


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("override", ["lora.rank=8", "lora.alpha=64.0", "training.image_learning_rate=null"])
def test_what_a_checkpoint_was_made_by_never_changes(runs, override, allowed):
    old = shapes("training.image_learning_rate=1e-4")
    (runs / "mine" / "recipe.resolved.yaml").write_text(dump_resolved(old))
    new = shapes("training.image_learning_rate=1e-4", override)
    with pytest.raises(RecipeError, match=r"the checkpoint was made with the old one; it cannot change on resume$"):
        resume(Place(run=runs / "mine"), new, allow_changes=allowed)


def test_all_refused_changes_are_said_at_once(runs):
    with pytest.raises(RecipeError) as error:
        resume(Place(run=runs / "mine"), shapes("training.seed=1", "lora.rank=2", "training.max_steps=7"))
    assert [line.partition(":")[0] for line in str(error.value).split("\n")] == ["training.seed", "lora.rank"]


def test_changes_are_appended_and_what_was_recorded_stays(runs):
    run, first = runs / "mine", (runs / "mine" / "recipe.resolved.yaml").read_bytes()
    recorder = Recorder(run)

    def go_on(*overrides) -> tuple[Recipe, Resumed]:
        recipe = shapes(*overrides)
        found = resume(Place(run=run), recipe)
        record_changes(recorder, recipe, found)
        return recipe, found

    assert recorded(run).name == "recipe.resolved.yaml" and not go_on()[1].changes
    assert not (run / CHANGES).exists()
    longer, _ = go_on("training.max_steps=700")
    assert load_recipe(recorded(run)) == longer
    assert not go_on("training.max_steps=700")[1].changes, "compared with what it was last changed to"
    go_on("training.max_steps=700", "training.learning_rate=1e-4")
    rows = [json.loads(line) for line in (run / CHANGES).read_text().splitlines()]
    assert [(row["step"], list(row["changes"])) for row in rows] == [
        (4, ["training.max_steps"]), (4, ["training.learning_rate"]),
    ]  # fmt: skip
    assert rows[0]["changes"]["training.max_steps"] == [shapes().training.max_steps, 700]
    assert (run / "recipe.resolved.yaml").read_bytes() == first
    assert {"recipe.change-1.yaml", "recipe.change-2.yaml"} <= {path.name for path in run.iterdir()}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (Path.unlink, "recipe.resolved.yaml is missing: nothing says what the run was made with"),
        (lambda file: file.write_text("a: ["), "recipe.resolved.yaml cannot be read as a recipe"),
        (lambda file: file.write_text("version: 1\nrewads: []"), "recipe.resolved.yaml cannot be read as a recipe"),
    ],
)
def test_a_run_that_does_not_say_what_it_was_made_with_is_refused(runs, damage, said):
    damage(runs / "mine" / "recipe.resolved.yaml")
    with pytest.raises(InputError, match=said):
        resume(Place(run=runs / "mine"), shapes())


def test_without_a_recipe_the_run_s_own_goes_on(runs, capsys):
    """With what is to be changed in its place; the latest run of any recipe lies where recipes put theirs."""
    assert cli.run(["train", "training.max_steps=7", "--resume", str(runs / "mine"), "--dry-run"]) == 0
    assert capsys.readouterr().out == dump_resolved(shapes("training.max_steps=7"))
    assert cli.run(["train", "--resume", str(runs / "mine" / "checkpoint-3"), "--dry-run"]) == 2
    assert "mine has no checkpoint-3" in capsys.readouterr().err
    assert cli.run(["train"]) == 2 and "no recipe; give a YAML file" in capsys.readouterr().err
