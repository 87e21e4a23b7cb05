"""What one run measured of its base, read by another: the same figures, in a fraction of the time."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from r3_rl.errors import InputError
from r3_rl.evaluate.kept_base import KeptBase
from r3_rl.evaluate.loop_bench import LoopBench
from r3_rl.evaluate.run import train
from tests.evaluate.test_loop_bench import ByLight, small
from tests.evaluate.test_run import assert_same_adapter, base, bench, recipe  # noqa: F401  fixtures
from tests.policy.tiny import tiny_policy


@pytest.fixture(scope="module")
def phases(tmp_path_factory):
    """A bench, a first phase of it, and where that is kept."""
    policy, measured_by = tiny_policy(), small(ByLight, tags=("counting", "multi_count"))
    policy.module.requires_grad_(False)
    items = measured_by.items()
    kept = KeptBase(folder=tmp_path_factory.mktemp("kept") / "name", bench=measured_by, items=items)
    assert kept.read() is None
    first = measured_by.run(policy, items)
    kept.write(first)
    return policy, kept, first


def test_what_is_read_is_what_was_measured(phases):
    policy, kept, first = phases
    again = kept.read()
    assert again.values == first.values and again.words == first.words and again.intervals() == first.intervals()
    assert again.items.texts() == first.items.texts()
    for name in ("wrong", "rights", "own_wrong", "own_right"):
        mine, its = getattr(again.items.fixed, name), getattr(first.items.fixed, name)
        assert mine.prompts == its.prompts and len(its.images) > 0
        assert all(map(torch.equal, mine.images, its.images))
    later = kept.bench.run(policy, again.items)
    assert later.values == kept.bench.run(policy, first.items).values, "a later phase is judged on the same images"


def test_whoever_comes_second_leaves_what_is_there(phases):
    _, kept, first = phases
    kept.write(replace(first, values={"draft": [1.0]}))
    assert kept.read().values == first.values and [f.name for f in kept.folder.parent.iterdir()] == ["name"]


@pytest.mark.parametrize("file", ["values.json", "drafts.safetensors"])
@pytest.mark.parametrize("harm", ["gone", "cut", "others"])
def test_damage_is_said(phases, tmp_path, file, harm):
    _, kept, first = phases
    kept = replace(kept, folder=tmp_path / "name")
    kept.write(first)
    path = kept.folder / file
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:20] if harm == "cut" else b"[]")
    with pytest.raises(InputError, match=r"name is damaged: .*; remove it"):
        kept.read()


def test_a_run_reads_what_another_left_and_has_its_figures(recipe, tmp_path, capsys):  # noqa: F811
    here = f"training.base_measured={tmp_path / 'base'}"
    plain = train(recipe(), bench=bench(recipe())).folder
    first, second = (train(recipe(here), bench=bench(recipe())).folder for _ in range(2))
    assert capsys.readouterr().out.count("measured before training by another run, kept in ") == 1
    documents = [json.loads((folder / "evaluation.json").read_text()) for folder in (plain, first, second)]
    assert documents[0] == documents[1] == documents[2]
    assert_same_adapter(plain, second)
    assert (first / "values.json").read_text() == (second / "values.json").read_text()
    shown = [(second / "trajectories.jsonl").read_text().splitlines(), (plain / "trajectories.jsonl").read_text()]
    before = [row for row in map(json.loads, shown[0]) if row["phase"] == "before"]
    rows = [row for row in map(json.loads, shown[1].splitlines()) if row["phase"] == "before"]
    assert [row["prompt"] for row in before] == [row["prompt"] for row in rows][:2], "the gallery's prompts"
    assert [row["rounds"][0]["score"] for row in before] == [row["rounds"][0]["score"] for row in rows][:2]


def test_another_loop_or_other_items_are_measured_anew(recipe, tmp_path):  # noqa: F811
    def folder(made, size=4, kind=LoopBench):
        found = kind.of(made, num_prompts=size)
        kept = KeptBase.of(tmp_path, made, found, found.items(), fingerprint="base", dtype="float32")
        assert kept.folder.parent == tmp_path
        return kept.folder.name

    here = f"training.base_measured={tmp_path}"
    first = folder(recipe(here))
    assert first == folder(recipe(here, "training.learning_rate=0.5", "rollout.branch={plan: 4, critique: 2}"))
    others = [recipe(here, "rollout.draft.num_steps=3"), recipe(here, "data.tags=[counting]")]
    assert len({first, *map(folder, others), folder(recipe(here), size=5), folder(recipe(here), kind=ByLight)}) == 5
