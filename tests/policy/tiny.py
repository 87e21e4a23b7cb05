"""A policy of the embedded kind in the smallest size: random weights, pixels for latents, the shapes world's words.

It draws 36 x 36 in nine tokens and takes milliseconds. Untrained, it writes words in any order; `AnyWords` reads an
answer into all of them, so that every stage of the loop really happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from r3_rl.flow.guidance import Guidance
from r3_rl.modalities import TextSegment
from r3_rl.policy.adapters import AdapterSettings, adapted_layers, attach
from r3_rl.policy.bagel.autoencoder import Autoencoder
from r3_rl.policy.bagel.backbone import BAGEL, SHARED
from r3_rl.policy.bagel.checkpoint import random_bagel
from r3_rl.policy.bagel.config import AutoencoderConfig, BagelConfig, LanguageConfig, ResizeRule, VisionConfig
from r3_rl.policy.bagel.policy import BagelPolicy
from r3_rl.policy.bagel.reader import Reader, special_token_ids
from r3_rl.policy.base import Drawing, Sampling
from r3_rl.policy.routing import GATE
from r3_rl.stages.protocol import Protocol
from r3_rl.stages.settings import DrawingPlan, LoopSettings
from r3_rl.types import Critique, Prompt
from r3_rl.worlds.shapes.language import build_tokenizer

TOKENIZER = build_tokenizer()
SIDE, PATCH = 36, 12
_KEEP = ResizeRule(longest=SIDE, shortest=SIDE, stride=PATCH)
CONFIG = BagelConfig(
    llm=LanguageConfig(
        vocab_size=TOKENIZER.get_vocab_size(),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    vit=VisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
    ),
    autoencoder=AutoencoderConfig(kind="identity", z_channels=3, downsample=1, scale_factor=1.0, shift_factor=0.0),
    latent_patch_size=PATCH,
    max_latent_size=SIDE // PATCH,
    vit_max_num_patch_per_side=SIDE // PATCH,
    prediction="data",
    vae_resize=_KEEP,
    vit_resize=_KEEP,
    special_token_ids=special_token_ids(TOKENIZER),
)
PAPER_GUIDANCE = Guidance(text=4.0, image=1.5, interval=(0.4, 1.0))
PROMPTS = (
    Prompt(text="a red circle"),
    Prompt(text="two blue squares and a green cross"),
    Prompt(text="a yellow triangle left of a red circle"),
)


@dataclass(frozen=True, kw_only=True)
class AnyWords(Protocol):
    """Reads every text of an untrained policy by its first token: a quarter stops, a quarter is malformed."""

    reflect_template: str = "check {prompt}"

    def plan_well_formed(self, segment: TextSegment) -> bool:
        return segment.token_ids[0] % 4 != 1

    def read_critique(self, segment: TextSegment) -> Critique:
        stop, well_formed = segment.token_ids[0] % 4 == 0, segment.token_ids[0] % 4 != 1
        edit = segment.text or "draw a red circle"
        return Critique(
            segment=segment,
            well_formed=well_formed,
            stop=stop,
            instruction=edit if well_formed and not stop else "",
        )


def tiny_policy(
    *,
    seed: int = 0,
    adapter: AdapterSettings | None = None,
    moved: float = 0.0,
    backend: str = "matmul",
    dtype: torch.dtype = torch.float32,
    shared_experts: bool = False,
) -> BagelPolicy:
    """Random weights, every part with an effect. `moved`: size of the adapter's B, which otherwise starts at zero, and
    how far its gates are from their start."""
    config = replace(CONFIG, llm=replace(CONFIG.llm, shared_experts=shared_experts))
    model = random_bagel(config, seed=seed, dtype=dtype)
    with torch.no_grad():  # words that hang on what was read, or a text would look the same with any context
        model.decoder.embed_tokens.weight.mul_(25)
        model.language_model.lm_head.weight.mul_(2)
    model.decoder.backend = backend
    model.requires_grad_(adapter is None)
    if adapter is not None:
        attach(model, adapter, (SHARED if shared_experts else BAGEL).spec.branches, seed=seed)
        generator = torch.Generator().manual_seed(seed + 1)
        for layer in adapted_layers(model).values():
            for part in layer.lora_B.values():
                part.weight.data = moved * torch.randn(part.weight.shape, generator=generator)
            for name, gate in layer.named_parameters(recurse=False):
                assert name == GATE
                gate.data += 10 * moved * torch.randn(gate.shape, generator=generator)
    reader = Reader(config=config, tokenizer=TOKENIZER, autoencoder=Autoencoder(CONFIG.autoencoder))
    return BagelPolicy(model, reader)


def loop(
    *,
    guidance: Guidance | None = None,
    plan: Sampling | None = Sampling(max_new_tokens=6),  # noqa: B008 - frozen
    critique: Sampling = Sampling(max_new_tokens=8),  # noqa: B008 - frozen
    num_steps: int = 4,
    size: tuple[int, int] = (SIDE, SIDE),
    **options: object,
) -> LoopSettings:
    """Short texts and short drawings."""
    drawing = Drawing(num_steps=num_steps, guidance=guidance or Guidance(), size=size)
    stage = DrawingPlan(drawing=drawing, num_sde_steps=2)
    return LoopSettings(protocol=AnyWords(), plan=plan, critique=critique, draft=stage, refine=stage, **options)


def pictures(count: int, *, height: int = SIDE, width: int = SIDE, seed: int = 0) -> Sequence[torch.Tensor]:
    """Images float32 [3, height, width] in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.rand(count, 3, height, width, generator=generator))
