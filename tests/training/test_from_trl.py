"""What a TRL user hands over is taken as it is meant, or refused by name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PromptTuningConfig

from r3_rl import Refiner
from r3_rl.errors import DataError, InputError
from r3_rl.policy.adapters import AdapterSettings
from r3_rl.scoring.registry import ScorerInputError, load_scorer
from r3_rl.training.config import R3Config
from r3_rl.training.from_trl import adapter_of, config_of, prompts_of
from r3_rl.training.trainer import R3Trainer
from r3_rl.types import Prompt
from tests.policy.tiny import loop, tiny_policy
from tests.training.test_trainer import LORA, make, red, run

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "r3_trainer.py"


def test_rows_of_a_data_set_are_prompts_with_their_other_columns():
    chat = [{"role": "system", "content": "draw"}, {"role": "user", "content": " a cross "}]
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a square"}]}]
    assert prompts_of(Dataset.from_list([{"prompt": "a circle", "n": 1}, {"prompt": "a cross", "n": 2}])) == [
        Prompt(text="a circle", columns={"n": 1}),
        Prompt(text="a cross", columns={"n": 2}),
    ]
    assert [p.text for p in prompts_of([{"prompt": chat}, {"prompt": parts}])] == ["a cross", "a square"]
    assert [p.text for p in prompts_of(["a circle", " a cross "])] == ["a circle", "a cross"]
    kept = Prompt(text="a circle")
    assert prompts_of([kept])[0] is kept


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a cross"}], "row 0 has no column 'prompt': text; rename_column"),
        ([{"prompt": "a cross"}, {"prompt": "  "}], "row 1: the prompt is empty"),
        ([{"prompt": [{"role": "assistant", "content": "no"}]}], "row 0: the prompt is empty"),
        ([{"prompt": None}], "row 0: the prompt is empty"),
        ([["a cross"]], "row 0 has no column 'prompt': list"),
        ("a cross", "one text as train_dataset: 'a cross'"),
        (IterableDataset.from_generator(lambda: iter([{"prompt": "a"}])), "no order to resume in"),
    ],
)
def test_rows_that_cannot_be_drawn_are_refused(rows, message):
    with pytest.raises(DataError, match=message):
        prompts_of(rows)


def test_what_is_no_policy_and_words_that_it_cannot_read_are_refused():
    pipe, args = Refiner.from_pretrained(), R3Config("unused", max_steps=1)
    for model in ("weights", Path("weights"), pipe.policy.module, torch.nn.DataParallel(pipe.policy.module)):
        with pytest.raises(InputError, match=r"as model.*\n?.*Refiner.from_pretrained\(FOLDER\).policy"):
            R3Trainer(model, red, args, ["a red circle"])
    with pytest.raises(DataError, match="row 1: the model does not know 'photo', 'zebra'"):
        R3Trainer(pipe.policy, red, args, ["a red circle", "a photo of a zebra"], peft_config=LORA)


def test_without_an_adapter_the_layers_of_a_frozen_model_are_trained(tmp_path):
    pipe = Refiner.from_pretrained()
    before = {name: p.clone() for name, p in pipe.policy.module.named_parameters()}
    assert not any(p.requires_grad for p in pipe.policy.module.parameters())
    args = R3Config(str(tmp_path), max_steps=1, warmup_steps=0, num_prompts=2, num_generations=4, report_to="none")
    trainer = R3Trainer(pipe.policy, red, args, ["one red circle", "two blue squares"], processing_class=pipe.loop)
    trainer.train()
    moved = {name for name, p in pipe.policy.module.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(re.fullmatch(pipe.policy.spec.layers, name) for name in moved)


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


# TRL asks transformers by names that it is about to drop.
OLD_NAMES = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


def of_trl(folder="out", **options):
    from trl import GRPOConfig

    usual = {"max_steps": 2, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "num_generations": 3,
             "bf16": False, "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}  # fmt: skip
    return GRPOConfig(str(folder), **{**usual, **options})


@OLD_NAMES
def test_a_grpo_config_is_taken_field_by_field_with_trls_defaults():
    found = config_of(of_trl(beta=0.01, epsilon_high=0.28, reward_weights=[1.0], data_seed=5, logging_steps=1))
    assert found == R3Config(
        "out", max_steps=2, num_prompts=2, num_generations=3, beta=0.01, epsilon_high=0.28, reward_weights=[1.0],
        data_seed=5, logging_steps=1, save_strategy="no", disable_tqdm=True,
        learning_rate=1e-6, lr_scheduler_type="linear", warmup_steps=0, adam_beta2=0.999, seed=42, save_steps=500,
        scale_rewards="group", run_name=found.run_name,
    )  # fmt: skip
    assert config_of(found) is found


@OLD_NAMES
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"loss_type": "grpo"}, "GRPOConfig sets loss_type, which R3Trainer does not do"),
        ({"max_completion_length": 64, "temperature": 0.7}, "sets max_completion_length, temperature, which"),
        ({"mask_truncated_completions": True, "top_k": 5}, "sets mask_truncated_completions, top_k, which"),
        ({"num_train_epochs": 1.0, "max_steps": -1}, "without max_steps: R3Trainer counts steps, not epochs"),
        ({"steps_per_generation": 4}, "sets steps_per_generation, which"),
        ({"optim": "sgd"}, "R3Config optim='sgd': Input should be 'adamw_torch'"),
    ],
)
def test_what_of_a_grpo_config_has_no_meaning_here_is_refused_by_name(options, named):
    with pytest.raises(InputError, match=named):
        config_of(of_trl(**options))


@OLD_NAMES
def test_losses_of_texts_keep_their_meaning():
    assert config_of(of_trl(importance_sampling_level="sequence")).text_loss == "gspo"
    assert config_of(of_trl(loss_type="cispo")).text_loss == "cispo"
    with pytest.raises(InputError, match="two losses of texts"):
        config_of(of_trl(importance_sampling_level="sequence", loss_type="cispo"))


def test_other_arguments_are_refused():
    with pytest.raises(InputError, match="dict as args; give R3Config, or GRPOConfig"):
        config_of({"max_steps": 2})


@OLD_NAMES
def test_a_script_of_trl_trains(tmp_path):
    """Its arguments, a reward of TRL's by name and one that looks at the trainer's state."""
    steps = []

    def watching(completions, trainer_state, log_metric, **kwargs):
        steps.append(trainer_state.global_step)
        log_metric("seen", len(kwargs["completion_ids"]))
        return [0.0] * len(completions)

    trainer = R3Trainer(
        model=tiny_policy(),
        reward_funcs=["trl:think_format_reward", red, watching],
        args=of_trl(tmp_path, logging_steps=1, learning_rate=1e-2),
        train_dataset=Dataset.from_list([{"prompt": "a red circle"}, {"prompt": "a blue cross"}]),
        processing_class=loop(),
        peft_config=LORA,
    )
    rows = run(trainer)
    assert steps == [0, 1] and rows[0]["rewards/watching/seen"] == 6
    assert all(row["rewards/think_format_reward/mean"] == 0 and row["rewards/red/mean"] > 0 for row in rows)
    assert rows[0]["grad_norm"] > 0 and not list(tmp_path.iterdir()), "save_strategy 'no'"


def test_rewards_of_trl_are_found_by_name(monkeypatch):
    import trl.rewards

    assert load_scorer("trl:think_format_reward") is trl.rewards.think_format_reward
    penalty = load_scorer("trl:get_repetition_penalty_reward", {"ngram_size": 2, "max_penalty": -1.0})
    assert penalty(completion_ids=[[1, 2, 3], [1, 1, 1, 1]]) == [0.0, pytest.approx(-2 / 3)]
    with pytest.raises(ScorerInputError, match="no 'think_reward' in it; did you mean 'think_format_reward'"):
        load_scorer("trl:think_reward")
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ScorerInputError, match=r"needs the package trl; pip install 'r3-rl\[train\]'"):
        load_scorer("trl:think_format_reward")


@pytest.mark.processes
def test_the_example_runs(tmp_path):
    # r3_rl first: a torchvision that does not fit torch breaks peft's import, and ours steps around it
    script = f"import r3_rl, runpy; runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "example" / "adapter" / "adapter_model.safetensors").is_file()
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 32
