"""Adapters that were trained apart and added up: exactly the weighted sum of what each adds, wherever they sit."""

from __future__ import annotations

import json

import pytest
import torch

from r3_rl.cli import run
from r3_rl.errors import CheckpointError, InputError, RunError
from r3_rl.merging import Part, merge_adapters
from r3_rl.policy import adapters
from r3_rl.policy.adapters import AdapterSettings
from r3_rl.policy.bagel.backbone import BAGEL
from r3_rl.policy.bagel.checkpoint import fingerprint, load_bagel
from tests.policy.tiny_bagel import tiny_folder

READING = AdapterSettings(rank=3, alpha=4.0, branches="understanding")
DRAWING = AdapterSettings(rank=2, alpha=16.0, branches="generation")
BOTH = AdapterSettings(rank=2, rank_generation=5, alpha=2.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("base"))


def made(base, folder, settings, seed):
    model = adapters.attach(load_bagel(base), settings, BAGEL.spec.branches, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapters.adapted_layers(model).values():
            for part in layer.lora_B.values():
                part.weight.copy_(torch.randn(part.weight.shape, generator=generator) * 0.1)
    adapters.save_adapter(model, folder, fingerprint=fingerprint(base), recipe_text="version: 1\ntraining: {seed: 3}\n")
    return folder


def added(base, folder):
    """What an adapter adds to every weight of the base."""
    model, plain = load_bagel(base), load_bagel(base).state_dict()
    merged = adapters.merge(adapters.load_adapter(model, folder)).state_dict()
    return {name: (merged[name].double() - plain[name].double()) for name in plain}


@pytest.mark.parametrize(("one", "other"), [(READING, DRAWING), (BOTH, READING)], ids=["apart", "overlapping"])
def test_the_sum_is_exact_wherever_the_parts_sit(base, tmp_path, one, other, capsys):
    a, b = made(base, tmp_path / "a", one, 1), made(base, tmp_path / "b", other, 2)
    assert run(["merge", f"{a}:0.5", f"{b}:-1.25", "--out", str(tmp_path / "sum"), "--base", str(base)]) == 0
    assert "differs from the sum by at most" in capsys.readouterr().out
    alone, found = [added(base, a), added(base, b)], added(base, tmp_path / "sum")
    assert any(found[name].abs().max() > 0.1 for name in found)
    for name, change in found.items():
        assert (change - (0.5 * alone[0][name] - 1.25 * alone[1][name])).abs().max() < 1e-6, name
    card = (tmp_path / "sum" / "README.md").read_text()
    assert "- 0.5 of a: seed 3" in card and "- -1.25 of b" in card and "adapters that were trained apart" in card
    assert fingerprint(base) in card
    again = adapters.load_adapter(load_bagel(base), tmp_path / "sum", fingerprint=fingerprint(base))
    assert adapters.adapted_layers(again)


def test_what_cannot_be_added_up_is_refused(base, tmp_path):
    a, b = made(base, tmp_path / "a", READING, 1), made(base, tmp_path / "b", DRAWING, 2)
    parts = [Part(folder=str(a), weight=1.0), Part(folder=str(b), weight=1.0)]
    with pytest.raises(InputError, match="one adapter alone"):
        merge_adapters(parts[:1], tmp_path / "out", base=base)
    with pytest.raises(InputError, match="not empty"):
        merge_adapters(parts, a, base=base)
    with pytest.raises(InputError, match="'half' is no number"):
        Part.read("runs/a:half")
    with pytest.raises(InputError, match="no such folder"):
        merge_adapters([parts[0], Part(folder="nowhere", weight=1.0)], tmp_path / "out", base=base)
    adapters.save_adapter(adapters.load_adapter(load_bagel(base), b), b, fingerprint="of another base")
    with pytest.raises(InputError, match="trained on another base"):
        merge_adapters(parts, tmp_path / "out", base=base)
    made(base, b, AdapterSettings(rank=2, routing="split"), 3)
    with pytest.raises(InputError, match="routed by task"):
        merge_adapters(parts, tmp_path / "out", base=base)
    assert not (tmp_path / "out").exists()


def test_a_sum_that_is_none_is_not_written(base, tmp_path, monkeypatch):
    from r3_rl import merging

    a, b = made(base, tmp_path / "a", READING, 1), made(base, tmp_path / "b", DRAWING, 2)
    monkeypatch.setattr(merging, "_CLOSE", -1.0)
    with pytest.raises((RunError, CheckpointError), match="is not the sum of its parts"):
        merge_adapters([Part(folder=str(f), weight=1.0) for f in (a, b)], tmp_path / "out", base=base)
    assert not (tmp_path / "out").exists()


def test_rank_stabilised_parts_are_refused(base, tmp_path):
    a, b = (made(base, tmp_path / name, READING, seed) for name, seed in (("a", 1), ("b", 2)))
    file = b / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_rslora": True}))
    with pytest.raises(InputError, match=r"b: rank-stabilised \(use_rslora\)"):
        merge_adapters([Part(folder=str(a), weight=1.0), Part(folder=str(b), weight=1.0)], tmp_path / "sum", base=base)
