"""docs/bagel.md: the paper's settings are those of the recipe, under keys that exist; its recipes check."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

from r3_rl.policy.bagel.autoencoder import Autoencoder
from r3_rl.policy.bagel.config import BagelConfig
from r3_rl.policy.bagel.model import Bagel
from r3_rl.recipe import Recipe
from r3_rl.recipe.wording import section_at
from r3_rl.recipe.yaml_text import parse_value
from r3_rl.recipe_io import load_recipe, shipped_recipes
from tests.docs.documents import REPOSITORY

PAGE = (REPOSITORY / "docs" / "bagel.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\| [^|]+ \| [^|]+ \| `([\w.]+)` \| `([^|`]+)` \|$", PAGE, re.M)
RELEASED = sorted(name for name in shipped_recipes() if name.startswith("bagel_") and name != "bagel_smoke")

SCORER = "rewards=[{scorer: jpeg_size}]"


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> list[str]:
    """Overrides that name a folder and a prompt file that exist, and a scorer that needs no package and no judge."""
    folder = tmp_path_factory.mktemp("bagel")
    BagelConfig().to_folder(folder)
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": "a red cup", "short_description": "a red cup"}))
    return [f"model.path={folder}", SCORER, f"data.path={folder / 'prompts.jsonl'}"]


@pytest.fixture(scope="module")
def geneval(places) -> Recipe:
    """The recipe that the table is about."""
    return load_recipe("bagel_geneval", places)


def value_at(recipe: Recipe, path: str) -> Any:
    value: Any = recipe
    for name in path.split("."):
        value = getattr(value, name)
    return list(value) if isinstance(value, tuple) else value


def test_the_table_is_read_whole():
    assert (
        len(LINES)
        == len({key for key, _ in LINES})
        == PAGE.count("| `training.")
        + PAGE.count("| `rollout.")
        + (PAGE.count("| `algorithm.") + PAGE.count("| `lora."))
    )
    assert len(LINES) > 45


@pytest.mark.parametrize(("key", "value"), LINES)
def test_every_setting_of_the_paper_has_a_key_and_its_value(key, value, geneval):
    section, _, leaf = key.rpartition(".")
    schema = section_at(tuple(section.split(".")))
    assert schema is not None and leaf in schema.model_fields
    assert value_at(geneval, key) == parse_value(value)


def test_other_keys_that_the_page_names_exist():
    for key in re.findall(r"`((?:training|rollout|algorithm|lora|model|data)\.[a-z_.]+)`", PAGE):
        section, _, leaf = key.rpartition(".")
        assert leaf in section_at(tuple(section.split("."))).model_fields, key


@pytest.mark.parametrize("name", RELEASED)
def test_recipes_check_where_their_paths_exist_and_name_what_is_missing(name, places):
    checked = load_recipe(name, places if name != "bagel_base" else [*places, "data.kind=jsonl"])
    assert checked.model.dtype == "bfloat16" and checked.training.parallel.kind == "auto"
    assert checked.rollout.branch.plan == checked.rollout.branch.critique == 16
    assert checked.training.gradient_checkpointing
    with pytest.raises(ValueError) as caught:
        load_recipe(name, places[:2] if name != "bagel_base" else [SCORER])
    (line,) = str(caught.value).splitlines()
    assert "no such file" in line or "no such folder" in line
    assert "name the " in line, "the fix stands in the line"


def test_the_variants_differ_in_what_they_say():
    files = {name: shipped_recipes()[name].read_text() for name in RELEASED}
    for name in ("geneval", "geneval_plus", "tiif"):
        assert f"extends: bagel_{name}\n" in files[f"bagel_{name}_lora"]
        assert f"scorer: {name}\n" in files[f"bagel_{name}"]
    assert "schedule: draft_only" in files["bagel_draft_only"]
    assert all(len(text.splitlines()) <= 52 for text in files.values())


def test_what_full_weights_take_is_computed_from_the_released_sizes():
    config = BagelConfig()
    with torch.device("meta"):
        model, autoencoder = Bagel(config), Autoencoder(config.autoencoder)
    trained = [p.numel() for n, p in model.named_parameters() if ".layers." in n and "vit_model" not in n]
    frozen = 2 * (sum(p.numel() for p in model.parameters()) - sum(trained))
    frozen += 4 * sum(p.numel() for p in autoencoder.parameters())
    part = sum(trained) / 8
    held = {
        "weights that are not in shards, autoencoder": frozen,
        "AdamW's moments, master weights": 12 * part,
        "reference policy": 2 * part,
        "trained weights gathered, in rollouts": 2 * sum(trained),
    }
    rows = {cells[1].strip(): cells[2] for line in PAGE.splitlines() if len(cells := line.split("|")) == 5}
    for name, size in {**held, "gradients, float32, in updates": 4 * part}.items():
        assert f"{size / 2**30:.1f} GiB" in rows[name], name
    assert f" {sum(held.values()) / 2**30:.1f} GiB" in rows["rollouts, all of it"]
