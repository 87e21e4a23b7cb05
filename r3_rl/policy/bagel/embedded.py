"""The embedded size of BAGEL: pixels are the latents, and images of a world are not resized."""

from __future__ import annotations

from tokenizers import Tokenizer

from r3_rl.policy.bagel.config import AutoencoderConfig, BagelConfig, LanguageConfig, ResizeRule, VisionConfig
from r3_rl.policy.bagel.reader import special_token_ids
from r3_rl.policy.bagel.size import SizeSection


def embedded_config(
    size: SizeSection, tokenizer: Tokenizer, *, image_size: int, background: float, shared_experts: bool = False
) -> BagelConfig:
    """Return the sizes of a small model of a world.

    Args:
        size: of the recipe.
        tokenizer: of the world, with BAGEL's four special tokens.
        image_size: side of the world's images in pixels, which both patch sizes divide.
        background: their most frequent value, in [0, 1].
        shared_experts: one set of layers for both kinds of token.
    """
    keep = ResizeRule(longest=image_size, shortest=image_size, stride=size.latent_patch_size)
    return BagelConfig(
        llm=LanguageConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=size.hidden_size,
            intermediate_size=size.intermediate_size,
            num_hidden_layers=size.num_layers,
            num_attention_heads=size.num_heads,
            num_key_value_heads=size.num_kv_heads,
            shared_experts=shared_experts,
        ),
        vit=VisionConfig(
            hidden_size=size.vit_hidden_size,
            intermediate_size=size.vit_intermediate_size,
            num_hidden_layers=size.vit_num_layers,
            num_attention_heads=size.vit_num_heads,
            image_size=image_size,
            patch_size=size.vit_patch_size,
            image_mean=background,
            image_std=0.25,
        ),
        # the ground is zero for both towers: as a constant far from zero it drowns what lies on it (lab book)
        autoencoder=AutoencoderConfig(
            kind="identity", z_channels=3, downsample=1, scale_factor=1.0, shift_factor=2 * background - 1
        ),
        latent_patch_size=size.latent_patch_size,
        max_latent_size=image_size // size.latent_patch_size,
        vit_max_num_patch_per_side=image_size // size.vit_patch_size,
        prediction="data",
        vae_resize=keep,
        vit_resize=keep,
        special_token_ids=special_token_ids(tokenizer),
    )
