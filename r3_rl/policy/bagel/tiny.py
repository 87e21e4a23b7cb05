"""A BAGEL checkpoint of a few hundred thousand random weights in the released layout and file names.

For trying recipes, loaders and exports of the large model on a CPU: `python -m r3_rl.policy.bagel.tiny FOLDER`. It
draws noise and writes nonsense, but every tensor name, file name and code path is the released one's.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from r3_rl.policy.bagel.autoencoder import Autoencoder
from r3_rl.policy.bagel.checkpoint import random_bagel, save_bagel
from r3_rl.policy.bagel.config import AutoencoderConfig, BagelConfig, LanguageConfig, ResizeRule, VisionConfig
from r3_rl.policy.bagel.reader import special_token_ids

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
_WORDS = "a photo of the image prompt compare them think inside say what is wrong then write one edit instruction"


def byte_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer (as Qwen2.5's is) of 300-odd tokens; it reads any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator([_WORDS], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def tiny_config(tokenizer: Tokenizer, *, image_size: int = 64, shared_experts: bool = False) -> BagelConfig:
    """Sizes of the tiny checkpoint: the flux autoencoder, latent patches of 2, understanding patches of 14."""
    return BagelConfig(
        llm=LanguageConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            shared_experts=shared_experts,
        ),
        vit=VisionConfig(
            hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=3, image_size=112
        ),
        autoencoder=AutoencoderConfig(ch=32, ch_mult=(1, 1, 1, 2), num_res_blocks=1, z_channels=4),
        max_latent_size=8,
        vit_max_num_patch_per_side=8,
        vae_resize=ResizeRule(longest=image_size, shortest=image_size // 2, stride=16),
        vit_resize=ResizeRule(longest=112, shortest=28, stride=14),
        special_token_ids=special_token_ids(tokenizer),
    )


def write_tiny_checkpoint(folder: str | Path, *, seed: int = 0, shared_experts: bool = False) -> Path:
    """Writes the folder: weights, autoencoder, configuration, tokenizer; about 5 MB."""
    tokenizer = byte_tokenizer()
    config = tiny_config(tokenizer, shared_experts=shared_experts)
    model = random_bagel(config, seed=seed)
    save_bagel(model, Autoencoder(config.autoencoder), tokenizer, folder)
    return Path(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m r3_rl.policy.bagel.tiny FOLDER")
    print(write_tiny_checkpoint(sys.argv[1]))
