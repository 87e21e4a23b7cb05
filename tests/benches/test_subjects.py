"""What a command names, and the base below it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from r3_rl.benches.subjects import find_subjects
from r3_rl.errors import InputError
from r3_rl.policy.bagel.autoencoder import Autoencoder
from r3_rl.policy.bagel.checkpoint import save_bagel
from r3_rl.worlds.base import find_world
from tests.evaluate.test_refiner import adapted
from tests.policy.tiny import CONFIG, TOKENIZER, tiny_policy


def weights(folder: Path, seed: int) -> Path:
    save_bagel(tiny_policy(seed=seed).model, Autoencoder(CONFIG.autoencoder), TOKENIZER, folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> list[Path]:
    return [weights(tmp_path_factory.mktemp("base"), seed) for seed in (0, 1)]


def run_with_adapter(base: Path, folder: Path) -> Path:
    tags = find_world().tags[:2]
    recipe = f"model: {{kind: embedded, path: {base}}}\ndata: {{kind: shapes, tags: [{', '.join(tags)}]}}\n"
    adapted(base, folder / "adapter", recipe)
    return folder


def first_weight(subject) -> torch.Tensor:
    with subject.policy() as policy:
        return next(iter(policy.module.parameters())).detach().clone()


def test_a_run_with_an_adapter_is_compared_with_the_same_model_without_it(bases, tmp_path):
    run = run_with_adapter(bases[0], tmp_path / "run")
    found = find_subjects(str(run))
    assert [s.key for s in found.models] == ["base", "trained"] and found.comparisons == [("base", "trained")]
    assert found.models[1].marks.startswith(found.models[0].marks + "+")
    assert [s.short_name for s in find_subjects(str(run / "adapter")).models] == ["adapter without its adapter", "run"]
    assert found.tags == find_world().tags[:2] and found.world.name == find_world().name


def test_full_weights_are_compared_with_what_the_recipe_names_by_the_same_loop(bases, tmp_path):
    weights(tmp_path / "run" / "model", 2)
    recipe = f"model: {{kind: embedded, path: {bases[0]}}}\nrollout: {{draft: {{num_steps: 3}}}}\n"
    (tmp_path / "run" / "recipe.resolved.yaml").write_text(recipe)
    base, trained = find_subjects(str(tmp_path / "run")).models
    (named,) = find_subjects(str(bases[0])).models
    assert base.marks == named.marks != trained.marks
    # a folder without a recipe is loaded in the number format that suits the machine
    assert torch.equal(first_weight(base).to(first_weight(named).dtype), first_weight(named))
    assert base.loaded.loop == trained.loaded.loop and base.loaded.loop.draft.drawing.num_steps == 3


def test_another_base_is_measured_too_and_the_same_one_once(bases, tmp_path):
    one, other = (run_with_adapter(base, tmp_path / base.name) for base in bases)
    found = find_subjects(str(one), against=str(other))
    assert [s.key for s in found.models] == ["base", "trained", "other-base", "other"]
    assert found.comparisons == [("base", "trained"), ("trained", "other"), ("other-base", "other")]
    same = find_subjects(str(one), against=str(one))
    assert [s.key for s in same.models] == ["base", "trained", "other"]
    assert same.comparisons == [("base", "trained"), ("trained", "other"), ("base", "other")]


def test_a_run_that_has_not_ended_is_told(tmp_path):
    (tmp_path / "recipe.resolved.yaml").write_text("version: 1\n")
    with pytest.raises(InputError, match="has left neither adapter/ nor model/; let it end first"):
        find_subjects(str(tmp_path))
    with pytest.raises(InputError, match="no such folder"):
        find_subjects(str(tmp_path / "nowhere"))
