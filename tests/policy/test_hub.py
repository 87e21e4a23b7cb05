"""Weights by their name on the hub: its cache as a download leaves it, and no network."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from pydantic import ValidationError

from r3_rl.assemble import base_folder, load_policy
from r3_rl.errors import CheckpointError, InputError, RecipeError
from r3_rl.policy.adapters import AdapterSettings, attach, load_adapter, save_adapter
from r3_rl.policy.bagel.checkpoint import fingerprint
from r3_rl.policy.bagel.tiny import write_tiny_checkpoint
from r3_rl.policy.weights import digest_of
from r3_rl.recipe.sampling import ModelSection
from r3_rl.recipe_io import load_recipe

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "somebody/tiny-bagel"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """models--OWNER--NAME with blobs, links to them by commit, and the branch that names the commit."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--somebody--tiny-bagel"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True)
    for number, file in enumerate(sorted(write_tiny_checkpoint(tmp_path / "tiny").iterdir())):
        os.replace(file, repository / "blobs" / f"{number:040x}")
        (snapshot / file.name).symlink_to(repository / "blobs" / f"{number:040x}")
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_name_on_the_hub_is_a_base(cache, revision):
    loaded = load_policy(ModelSection(kind="bagel", path=NAME, revision=revision))
    assert loaded.folder == cache and loaded.fingerprint == fingerprint(cache)
    assert base_folder(ModelSection(kind="bagel", path=str(cache))) == cache, "and its folder too"


def test_a_recipe_keeps_the_name_and_checks_without_a_network(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: pytest.fail("a check asks nobody"))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a red cup"}\n')
    places = [f"data.path={tmp_path / 'prompts.jsonl'}", "data.kind=jsonl"]
    recipe = load_recipe("bagel_smoke", [f"model.path={NAME}", "model.revision=main", *places])
    assert (recipe.model.path, recipe.model.revision) == (NAME, "main")
    with pytest.raises(RecipeError, match=r"override 'model\.path=nowhere'.*no such folder"):
        load_recipe("bagel_smoke", ["model.path=nowhere", *places])


@pytest.mark.parametrize(("name", "revision"), [("somebody/else", None), (NAME, "v2"), (NAME, "f" * 40)])
def test_what_is_not_there_is_one_line_with_the_way_out(cache, name, revision):
    with pytest.raises(CheckpointError, match=r"not in the hub's cache.*hf download .* model\.path=FOLDER") as caught:
        load_policy(ModelSection(kind="bagel", path=name, revision=revision))
    assert "\n" not in str(caught.value) and (revision or "") in str(caught.value)


def test_safetensors_and_json_alone_are_fetched(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **more: asked.append(more) or str(tmp_path))
    for random_init in (False, True):
        with pytest.raises(CheckpointError, match=r"no llm_config\.json"):
            load_policy(ModelSection(kind="bagel", path=NAME, random_init=random_init))
    assert [more["allow_patterns"] for more in asked] == [["*.json", "*.safetensors"], ["*.json"]]


@pytest.mark.parametrize("from_hub", [False, True])
def test_random_weights_are_known_by_themselves(cache, tmp_path, from_hub):
    """Not by those of the folder, of which they have no more than the sizes; a name on the hub brings nothing else."""
    folder = write_tiny_checkpoint(tmp_path / "other", seed=1)
    of_the_folder = fingerprint(folder)
    if from_hub:
        for file in cache.glob("*.safetensors"):
            file.unlink()
    section = ModelSection(kind="bagel", path=NAME if from_hub else str(folder), random_init=True)
    loaded, again = load_policy(section, device="cpu"), load_policy(section, device="cpu")
    assert loaded.fingerprint == again.fingerprint != of_the_folder
    loaded.policy.module.get_parameter("llm2vae.weight").data[0, 0] += 1
    assert digest_of({"": loaded.policy.module}) != digest_of({"": again.policy.module})
    attach(loaded.policy.module, AdapterSettings(rank=2), loaded.policy.spec.branches, seed=0)
    save_adapter(loaded.policy.module, tmp_path / "adapter", fingerprint=loaded.fingerprint)
    base = load_policy(ModelSection(kind="bagel", path=str(folder)), device="cpu")
    with pytest.raises(InputError, match="trained on another base"):
        load_adapter(base.policy.module, tmp_path / "adapter", fingerprint=base.fingerprint)


def test_a_folder_has_no_revision(tmp_path):
    with pytest.raises(ValidationError, match="only a name on the hub has revisions"):
        ModelSection(kind="bagel", path=str(tmp_path), revision="main")
