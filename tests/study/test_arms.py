"""Arms differ from R3 in one key, and the shipped recipes of baselines are the arms of that name."""

from __future__ import annotations

import pytest

from r3_rl.errors import InputError
from r3_rl.recipe.changes import changes
from r3_rl.recipe_io import load_recipe
from r3_rl.study.arms import ARMS, GROUPS, R3, find_arms

SHIPPED = {
    "shapes_draft_only": "draft_only",
    "shapes_cotrain": "cotrain",
    "shapes_progressive": "progressive",
    "shapes_random_reward": "coin",
}


def _differences(one, other):
    return [change.key for change in changes(one.model_dump(mode="json"), other.model_dump(mode="json"))]


@pytest.mark.parametrize("recipe", ["shapes_r3", "mosaic_r3"])
@pytest.mark.parametrize("name", ARMS)
def test_an_arm_changes_one_key_and_nothing_that_it_does_not_say(recipe, name):
    settings = ARMS[name].overrides(load_recipe(recipe).rollout.branch)
    keys = [setting.partition("=")[0] for setting in settings]
    assert len(keys) == (0 if name == R3 else 1)
    found = _differences(load_recipe(recipe), load_recipe(recipe, settings))
    assert bool(found) == (name != R3)
    assert all(key == keys[0] or key.startswith(f"{keys[0]}.") for key in found)


@pytest.mark.parametrize(("recipe", "arm"), SHIPPED.items())
def test_a_shipped_baseline_is_the_arm(recipe, arm):
    assert _differences(load_recipe(recipe), load_recipe("shapes_r3", ARMS[arm].settings)) == []


@pytest.mark.parametrize("recipe", ["shapes_r3", "mosaic_r3"])
@pytest.mark.parametrize("name", ["one_to_one", "refined_twice"])
def test_arms_of_another_credit_draw_as_many_images(recipe, name):
    plain = load_recipe(recipe).rollout.branch
    other = load_recipe(recipe, ARMS[name].overrides(plain)).rollout.branch
    assert other.plan * other.draft == plain.plan * plain.draft
    assert other.critique * other.refinement == plain.critique * plain.refinement
    assert (other.draft, other.refinement) == {"one_to_one": (1, 1), "refined_twice": (plain.draft, 2)}[name]


def test_groups_and_recipes_are_found_and_a_slip_is_told(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("extends: shapes_r3\n")
    assert [arm.name for arm in find_arms(["main", "r3", str(own)])] == [*GROUPS["main"], "mine"]
    with pytest.raises(InputError, match="no arm 'cotrian'") as slip:
        find_arms(["cotrian"])
    assert "did you mean 'cotrain'?" in str(slip.value.hint)
    with pytest.raises(InputError, match="no arm is named"):
        find_arms([])
    (tmp_path / "r3.yaml").write_text("extends: shapes_r3\n")
    with pytest.raises(InputError, match="two arms are called 'r3'"):
        find_arms(["r3", str(tmp_path / "r3.yaml")])
