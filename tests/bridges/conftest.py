"""The smallest language model that TRL can train: random, its tokenizer built here, its words whole sentences."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from r3_rl.torchvision_guard import guard

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture
def quiet_trl(monkeypatch):
    """TRL reports every run to a server and warns of what it calls experimental."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


def call_of(tool: str, **arguments: str) -> str:
    """A call of a tool as Qwen2.5 writes it."""
    return f"<tool_call>\n{json.dumps({'name': tool, 'arguments': arguments})}\n</tool_call>"


@pytest.fixture
def talker(quiet_trl, tmp_path) -> Callable[..., SimpleNamespace]:
    """`talker("yes", call_of(...))`: a random Qwen2 whose every token is one of these sentences or the end.

    It reads bytes, so that any prompt and answer of a tool is a text to it.
    """

    def build(*sentences: str, **config: Any) -> SimpleNamespace:
        guard()  # a torchvision without its own operators keeps transformers' models from being imported
        from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, set_seed
        from trl import GRPOConfig
        from trl.chat_template_utils import qwen2_5_chat_template

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        raw = Tokenizer(models.BPE(vocab={sign: i for i, sign in enumerate(alphabet)}, merges=[]))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        raw.add_special_tokens(list(SPECIAL))
        raw.add_tokens([AddedToken(sentence, normalized=False) for sentence in sentences])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
        )
        tokenizer.chat_template = qwen2_5_chat_template
        said = {tokenizer.convert_tokens_to_ids(sentence) for sentence in (*sentences, "<|im_end|>")}
        set_seed(0)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=4096, bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            )
        )  # fmt: skip
        options: dict[str, Any] = {
            "output_dir": str(tmp_path / "trl"), "max_steps": 2, "per_device_train_batch_size": 4,
            "num_generations": 4, "max_completion_length": 256, "learning_rate": 1e-2, "logging_steps": 1, "beta": 0.0,
            "generation_kwargs": {"suppress_tokens": sorted(set(range(len(tokenizer))) - said)}, "seed": 0,
            "use_cpu": True, "bf16": False, "gradient_checkpointing": None, "save_strategy": "no",
            "report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False,
        }  # fmt: skip
        return SimpleNamespace(model=model, tokenizer=tokenizer, args=GRPOConfig(**(options | config)))

    return build
