"""What a TRL user hands over is taken as it is meant, or refused by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PromptTuningConfig

from r3_rl.errors import DataError, InputError
from r3_rl.policy.adapters import AdapterSettings
from r3_rl.training.from_trl import adapter_of, prompts_of
from r3_rl.types import Prompt
from tests.training.test_trainer import make, run

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "r3_trainer.py"


def test_rows_of_a_data_set_are_prompts_with_their_other_columns():
    chat = [{"role": "system", "content": "draw"}, {"role": "user", "content": " a cross "}]
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a square"}]}]
    assert prompts_of(Dataset.from_list([{"prompt": "a circle", "n": 1}, {"prompt": "a cross", "n": 2}])) == [
        Prompt(text="a circle", columns={"n": 1}),
        Prompt(text="a cross", columns={"n": 2}),
    ]
    assert [p.text for p in prompts_of([{"prompt": chat}, {"prompt": parts}])] == ["a cross", "a square"]
    kept = Prompt(text="a circle")
    assert prompts_of([kept])[0] is kept


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a cross"}], "row 0 has no column 'prompt': text; rename_column"),
        ([{"prompt": "a cross"}, {"prompt": "  "}], "row 1: the prompt is empty"),
        ([{"prompt": [{"role": "assistant", "content": "no"}]}], "row 0: the prompt is empty"),
        ([{"prompt": None}], "row 0: the prompt is empty"),
        (["a cross"], "row 0 has no column 'prompt': str"),
        (IterableDataset.from_generator(lambda: iter([{"prompt": "a"}])), "no order to resume in"),
    ],
)
def test_rows_that_cannot_be_drawn_are_refused(rows, message):
    with pytest.raises(DataError, match=message):
        prompts_of(rows)


def test_rank_alpha_and_dropout_of_a_lora_config_are_taken():
    assert adapter_of(LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, task_type="CAUSAL_LM")) == AdapterSettings(
        rank=4, alpha=8, dropout=0.1
    )
    assert adapter_of(LoraConfig(target_modules="all-linear")).rank == 8
    assert adapter_of(None) is None and adapter_of(own := AdapterSettings()) is own


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (LoraConfig(use_dora=True), "use_dora"),
        (LoraConfig(target_modules=["q_proj"]), "target_modules"),
        (LoraConfig(use_rslora=True, bias="all"), "bias, use_rslora"),
        (LoraConfig(modules_to_save=["lm_head"]), "modules_to_save"),
    ],
)
def test_what_would_not_be_done_is_refused(config, named):
    with pytest.raises(InputError, match=f"LoraConfig sets {named}, which"):
        adapter_of(config)


def test_another_kind_of_adapter_is_refused():
    with pytest.raises(InputError, match=r"PromptTuningConfig as peft_config; give peft\.LoraConfig"):
        adapter_of(PromptTuningConfig(num_virtual_tokens=4))


def test_a_lora_config_and_the_settings_it_means_train_the_same(tmp_path):
    """And so do a data set and a list of the same prompts."""
    rows = [{"prompt": text} for text in ("a red circle", "a blue cross", "a square")]
    own = make(tmp_path / "own", dataset=prompts_of(rows), lora=AdapterSettings(rank=2, alpha=4.0))
    theirs = make(tmp_path / "theirs", dataset=Dataset.from_list(rows), lora=LoraConfig(r=2, lora_alpha=4))
    for trainer in (own, theirs):
        run(trainer)
    a, b = ({n: p for n, p in t.policy.module.named_parameters() if p.requires_grad} for t in (own, theirs))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.processes
def test_the_example_runs(tmp_path):
    # r3_rl first: a torchvision that does not fit torch breaks peft's import, and ours steps around it
    script = f"import r3_rl, runpy; runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "example" / "adapter" / "adapter_model.safetensors").is_file()
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 32
