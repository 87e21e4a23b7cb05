"""A BAGEL that fits in a hundred kilobytes, with pixels for latents and words for tokens; its policy and its folder."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from r3_rl.policy.bagel.autoencoder import Autoencoder
from r3_rl.policy.bagel.checkpoint import random_bagel, save_bagel
from r3_rl.policy.bagel.config import AutoencoderConfig, BagelConfig, LanguageConfig, ResizeRule, VisionConfig
from r3_rl.policy.bagel.model import Bagel
from r3_rl.policy.bagel.policy import BagelPolicy
from r3_rl.policy.bagel.reader import Reader, special_token_ids

_SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
_SAID = "a red blue circle square draw check edit top left <think> </think>"
_WORDS = [*_SPECIAL, "<unk>", *_SAID.split()]
_SMALL = ResizeRule(longest=16, shortest=16, stride=8)


def tokenizer() -> Tokenizer:
    """One token a word."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(_WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(_SPECIAL)
    return made


CONFIG = BagelConfig(
    llm=LanguageConfig(
        vocab_size=len(_WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    ),
    vit=VisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    ),
    autoencoder=AutoencoderConfig(kind="identity", z_channels=3, downsample=1, scale_factor=1.0, shift_factor=0.0),
    latent_patch_size=8,
    max_latent_size=2,
    vit_max_num_patch_per_side=2,
    vae_resize=_SMALL,
    vit_resize=_SMALL,
    special_token_ids=special_token_ids(tokenizer()),
)


def tiny_bagel(seed: int = 0, dtype: torch.dtype = torch.float32) -> Bagel:
    """Random weights; the same for the same seed."""
    return random_bagel(CONFIG, seed=seed, dtype=dtype)


def tiny_policy(model: Bagel) -> BagelPolicy:
    """The model with its reader."""
    reader = Reader(config=model.config, tokenizer=tokenizer(), autoencoder=Autoencoder(model.config.autoencoder))
    return BagelPolicy(model, reader)


def tiny_folder(folder: Path, seed: int = 0) -> Path:
    """The model as a folder of weights."""
    save_bagel(tiny_bagel(seed), Autoencoder(CONFIG.autoencoder), tokenizer(), folder)
    return folder
