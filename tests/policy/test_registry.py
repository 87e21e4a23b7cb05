"""Backbones are found by name, by entry point or by their folder, and nothing else in the package names one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from r3_rl import registered
from r3_rl.errors import CheckpointError, InputError
from r3_rl.policy import registry
from r3_rl.policy.backbone import branch_of
from r3_rl.recipe_io import load_recipe

PACKAGE = Path(__file__).resolve().parents[2] / "r3_rl"


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """An installed package that brings the backbone `lines`, whose folders hold a `lines.json`."""
    (tmp_path / "lines_backbone.py").write_text(
        "from dataclasses import replace\n"
        "from r3_rl.policy.bagel.backbone import BagelBackbone, _SPEC\n"
        "class Lines(BagelBackbone):\n"
        "    spec = replace(_SPEC, name='lines', title='Lines', released=(), templates=None)\n"
        "    def refusal(self, folder):\n"
        "        return '' if (folder / 'lines.json').is_file() else 'it has no lines.json'\n"
        "LINES = Lines()\n"
    )
    information = tmp_path / "lines-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: lines\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[r3_rl.backbones]\nlines = lines_backbone:LINES\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return registry.find("lines")


@pytest.mark.processes
def test_names_and_image_sizes_load_no_torch(python):
    seen = python(
        "import sys; from r3_rl.policy.registry import find, names\n"
        "sizes = [find(name).sizes(None).stride for name in names()]\n"
        "print(len(sizes) > 0, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    assert seen.split() == ["True", "False", "False"]


def test_a_mistyped_name_says_what_was_meant():
    with pytest.raises(InputError, match=r"'bagle' is not in r3_rl.backbones; did you mean 'bagel'\?"):
        registry.find("bagle")


def test_a_stranger_s_backbone_is_found_by_its_entry_point_and_by_its_folder(foreign, tmp_path):
    assert registry.names() == ("bagel", "bagel_shared", "lines")
    with pytest.raises(CheckpointError, match=r"not a BAGEL folder: it has no llm_config\.json, .*not a Lines folder"):
        registry.backbone_of(tmp_path)
    (tmp_path / "lines.json").touch()
    assert registry.backbone_of(tmp_path) is registry.backbone_of(tmp_path, "lines") is foreign
    with pytest.raises(CheckpointError, match="is not a BAGEL folder"):
        registry.backbone_of(tmp_path, "bagel")


def test_a_backbone_that_cannot_be_imported_is_one_line(foreign, tmp_path):
    (tmp_path / "lines-1.0.dist-info" / "entry_points.txt").write_text("[r3_rl.backbones]\nlines = nowhere:LINES\n")
    with pytest.raises(InputError, match=r"'lines' \(nowhere:LINES\) fails to import: .*No module"):
        registry.find("lines")


@pytest.mark.parametrize("value", ["a" * 5000 + ":X", "a." + "b" * 5000 + ":X", "os:" + "n" * 5000])
def test_names_that_no_module_has_are_one_short_line(foreign, tmp_path, value):
    (tmp_path / "lines-1.0.dist-info" / "entry_points.txt").write_text(f"[r3_rl.backbones]\nlines = {value}\n")
    known = "is not in r3_rl.backbones; known: bagel, bagel_shared, lines"
    for name, said in (("lines", "fails to import: "), ("x" * 5000, known)):
        with pytest.raises(InputError, match=said) as caught:
            registry.find(name)
        assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.kind=bagle", "did you mean 'bagel'"),
        ("model.kind=auto", "kind 'auto' ships no weights"),
        ("rollout.protocol=bagle", "did you mean 'bagel'"),
        ("rollout.protocol=lines", "the backbone 'lines' brings no templates; use 'compact'"),
    ],
)
def test_a_recipe_is_checked_against_the_registry(foreign, tmp_path, override, said):
    given = [] if override == "model.kind=auto" else ["model.kind=auto", f"model.path={tmp_path}"]
    with pytest.raises(InputError, match=re.escape(said)):
        load_recipe("shapes_r3", [*given, override])


def test_a_weight_belongs_to_the_branch_whose_mark_it_bears():
    branches = registry.find("bagel").spec.branches
    assert branch_of("language_model.model.layers.0.mlp_moe_gen.up_proj", branches) == "generation"
    assert branch_of("language_model.lm_head", branches) == "understanding"


def test_no_generic_code_names_a_backbone():
    """Sources may be named where an equation comes from; everything else asks the registry."""
    ours = registered.BUILT_IN[registered.BACKBONES]
    rooms = {place.split(".")[2] for place in ours.values()}  # backbones of one architecture share theirs
    named = [
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if not any(path.is_relative_to(PACKAGE / "policy" / room) for room in rooms)
        for line in path.read_text(encoding="utf-8").splitlines()
        if any(name in line.lower() for name in ours) and not line.strip().startswith("Source: ")
    ]
    assert named == [f'registered.py: "{name}": "{place}",' for name, place in ours.items()]


def test_shared_experts_are_a_backbone_of_their_own_with_one_branch(tmp_path):
    two, one = registry.find("bagel"), registry.find("bagel_shared")
    folders = {backbone: backbone.write_tiny(tmp_path / backbone.spec.name) for backbone in (two, one)}
    for backbone, folder in folders.items():
        assert registry.backbone_of(folder) is backbone
        policy = registry.load(folder)
        assert policy.spec is backbone.spec
    assert tuple(one.spec.branches) == ("shared",) and one.spec.released == () and one.spec.templates is None
    assert branch_of("language_model.model.layers.0.mlp.up_proj", one.spec.branches) == "shared"
    assert branch_of("vae2llm", one.spec.branches) == "shared"
    names = {b: {name for name, _ in registry.load(folders[b]).module.named_parameters()} for b in (one, two)}
    assert names[one] == {name for name in names[two] if "_moe_gen" not in name}
    assert "one expert for both kinds of token" in one.describe(one.size_section())
    with pytest.raises(CheckpointError, match="its experts are shared"):
        registry.backbone_of(folders[one], "bagel")
