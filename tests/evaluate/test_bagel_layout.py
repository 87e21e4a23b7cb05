"""The training code of the embedded model, on a folder in BAGEL's released layout and prompts in GenEval's schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from r3_rl.evaluate.run import train
from r3_rl.export import export
from r3_rl.observe.recorder import read_lines
from r3_rl.policy.adapters import load_adapter
from r3_rl.policy.bagel.checkpoint import load_bagel
from r3_rl.policy.bagel.probe import outputs
from r3_rl.policy.bagel.tiny import write_tiny_checkpoint
from r3_rl.recipe_io import load_recipe

PROMPTS = [
    {"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}]},
    {"tag": "colors", "include": [{"class": "bus", "count": 1, "color": "green"}]},
    {"tag": "two_object", "include": [{"class": "cow", "count": 1}, {"class": "fork", "count": 1}]},
]


@pytest.fixture
def prompt_file(tmp_path: Path) -> Path:
    path = tmp_path / "geneval.jsonl"
    rows = [{**row, "prompt": f"a photo of {row['include'][0]['class']}s"} for row in PROMPTS]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def test_three_steps_on_the_released_layout(tmp_path: Path, prompt_file: Path, capsys) -> None:
    """Tree schedule with guidance 4.0 / 1.5; the exported adapter, loaded by plain peft, gives the policy's outputs."""
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    recipe = load_recipe(
        "bagel_smoke", [f"model.path={folder}", f"data.path={prompt_file}", f"training.output_dir={tmp_path}"]
    )
    result = train(recipe, name="run")
    rows = read_lines(result.folder / "metrics.jsonl").rows
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["ratio/image_deviation"] < 1e-4 for row in rows if "ratio/image_deviation" in row)
    stored = load_file(result.folder / "adapter" / "adapter_model.safetensors")
    assert any(bool(t.any()) for name, t in stored.items() if "lora_B" in name and "_moe_gen" in name)
    export(str(result.folder))
    assert "largest difference from the policy 0;" in capsys.readouterr().out
    adapted = PeftModel.from_pretrained(load_bagel(folder), str(result.folder / "adapter"))
    trained = load_adapter(load_bagel(folder), result.folder / "adapter")
    with torch.no_grad():
        seen = [outputs(model) for model in (adapted.base_model.model, trained, load_bagel(folder))]
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    assert sum(isinstance(p, torch.nn.Parameter) for n, p in adapted.named_parameters() if "lora_" in n) == len(stored)
