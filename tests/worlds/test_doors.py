"""Worlds are found by name, ours and those of installed packages, and say what they lack."""

from __future__ import annotations

import importlib

import pytest

from r3_rl import registered
from r3_rl.errors import InputError
from r3_rl.evaluate.demo import demo
from r3_rl.recipe import Recipe
from r3_rl.recipe_io import json_schema, load_recipe
from r3_rl.worlds.base import World, chosen_tags, find_world, world_speaking


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a package that brings a world, as pip would."""

    def install(name: str, module: str, source: str) -> None:
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[r3_rl.worlds]\n{name} = {module}:WORLD\n")
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()

    return install


def test_every_world_of_ours_has_all_doors():
    for name in registered.BUILT_IN[registered.WORLDS]:
        assert find_world(name).name == name
    assert find_world() is find_world(registered.default(registered.WORLDS))


def test_a_world_of_another_package_is_known_to_recipes(installed):
    installed("mars", "mars_world", "WORLD = object()\n")
    recipe = Recipe.model_validate({"version": 1, "rewards": [{"scorer": "length"}], "data": {"kind": "mars"}})
    assert recipe.data.world == "mars"
    kinds = json_schema()["$defs"]["DataSection"]["properties"]["kind"]["enum"]
    assert kinds[0] == registered.default(registered.WORLDS) and {"mars", "jsonl"} <= set(kinds)


def test_what_a_world_lacks_is_named(installed):
    installed("mars", "half_a_world", "class WORLD:\n    name, image_size, tags = 'mars', 8, ()\n")
    with pytest.raises(InputError, match=r"world 'mars' lacks background, .*weights_folder"):
        find_world("mars")


def test_a_world_that_fails_to_import_is_named(installed):
    installed("mars", "broken_world", "import no_such_package_at_all\n")
    with pytest.raises(InputError, match=r"'mars' .* fails to import: ModuleNotFoundError"):
        find_world("mars")


def test_ours_win_over_a_package_of_the_same_name(installed):
    ours = registered.default(registered.WORLDS)
    installed(ours, "false_world", "WORLD = None\n")
    assert find_world(ours).name == ours
    assert registered.names(registered.WORLDS).count(ours) == 1


def test_an_unknown_world_is_said_at_its_line(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("version: 1\ndata:\n  kind: shaeps\nrewards:\n  - scorer: length\n")
    with pytest.raises(InputError, match=r"r.yaml:3: data.kind: 'shaeps' is none of .*; did you mean 'shapes'\?"):
        load_recipe(file)
    with pytest.raises(InputError, match="did you mean 'shapes'"):
        find_world("shaeps")


def test_a_file_cannot_be_pretrained_on():
    with pytest.raises(ValueError, match="pretraining needs a world"):
        Recipe.model_validate({"version": 1, "pretrain": {}, "data": {"kind": "jsonl", "path": "p.jsonl"}})


def test_names_are_known_without_importing_anything_heavy(python):
    seen = python(
        "import sys; from r3_rl import registered; names = registered.names(registered.WORLDS);"
        "print(names[0], [m for m in ('numpy', 'torch', 'r3_rl.worlds') if m in sys.modules])"
    )
    assert seen.split() == [registered.default(registered.WORLDS), "[]"]


def test_chosen_tags_keep_their_order():
    world = find_world()
    first, second, *_ = world.tags
    assert chosen_tags(world, None, [first])[0] == second
    assert chosen_tags(world, [second, first]) == (second, first)


def test_a_model_is_told_by_its_words_even_beside_a_broken_world(installed):
    installed("mars", "broken_world", "import no_such_package_at_all\n")
    words = find_world().tokenizer().get_vocab()
    assert world_speaking(words) is find_world()
    with pytest.warns(UserWarning, match=r"'mars' .* fails to import"):
        assert world_speaking([*words, "martian"]) is None


def test_a_world_without_a_demo_says_so(installed):
    doors = [door for door in vars(World) if not door.startswith("_")]
    installed("mars", "quiet_world", f"class WORLD:\n    {' = '.join(doors)} = None\n    name = 'mars'\n")
    with pytest.raises(InputError, match="the world 'mars' has no demo; run a recipe of it"):
        demo(world="mars")
