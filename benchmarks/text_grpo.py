"""Text-only GRPO from the toolkit's parts: what `against_trl.py` puts beside TRL."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from r3_rl.algorithm.advantage import advantages
from r3_rl.modalities import Context, TextPiece
from r3_rl.observe.numbers import Numbers
from r3_rl.policy.bagel.autoencoder import Autoencoder
from r3_rl.policy.bagel.checkpoint import random_bagel
from r3_rl.policy.bagel.config import AutoencoderConfig, BagelConfig, LanguageConfig, VisionConfig
from r3_rl.policy.bagel.policy import BagelPolicy
from r3_rl.policy.bagel.reader import Reader, special_token_ids
from r3_rl.policy.base import Sampling
from r3_rl.policy.linear import Linear
from r3_rl.rollout.rows import row_seeds
from r3_rl.scoring.batch import ScoreBatch
from r3_rl.training.credit import Credit, StageCredit
from r3_rl.training.schedules import Collected, Schedule
from r3_rl.types import Prompt


def text_policy(qwen: Any, tokenizer: Any) -> BagelPolicy:
    """A BAGEL of a Qwen2's sizes whose understanding expert starts from its weights, with the smallest eyes."""
    sizes = qwen.config
    names = {f.name for f in dataclasses.fields(LanguageConfig)} - {"rope_theta", "shared_experts"}
    config = BagelConfig(
        llm=LanguageConfig(
            **{name: getattr(sizes, name) for name in names}, rope_theta=sizes.rope_parameters["rope_theta"]
        ),
        vit=VisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=8
        ),
        autoencoder=AutoencoderConfig(kind="identity", z_channels=3, downsample=1, scale_factor=1.0, shift_factor=0.0),
        latent_patch_size=8,
        max_latent_size=1,
        vit_max_num_patch_per_side=1,
        special_token_ids=special_token_ids(tokenizer),
    )
    model = random_bagel(config)
    head = qwen.lm_head.weight
    model.language_model.lm_head = Linear(head.shape[1], head.shape[0], bias=False)
    missing, surplus = model.language_model.load_state_dict(qwen.state_dict(), strict=False)
    assert not surplus and all("_moe_gen" in name or "_norm" in name for name in missing), (missing, surplus)
    reader = Reader(config=config, tokenizer=tokenizer, autoencoder=Autoencoder(config.autoencoder))
    return BagelPolicy(model, reader)


class TextSchedule(Schedule):
    """A group of texts for every prompt, scored and compared."""

    new_tokens: int

    @classmethod
    def like(cls, schedule: Schedule, *, new_tokens: int) -> TextSchedule:
        """With the engine, credit settings and pool of the trainer's own schedule."""
        parts = {f.name: getattr(schedule, f.name) for f in dataclasses.fields(Schedule)}
        made = cls(**parts)
        made.new_tokens = new_tokens
        return made

    def collect(self, step: int, prompts: Sequence[Prompt], *, seed: int, progress: float) -> Collected:
        """Rollouts and credits of one step."""
        engine, group = self.engine, self.branch.rollouts("reason")
        contexts: list[Context] = []
        for prompt in prompts:
            contexts += [(TextPiece(text=prompt.text),)] * group
        with engine.watch("write", len(contexts)):
            texts = engine.policy.write(
                contexts, Sampling(max_new_tokens=self.new_tokens), row_seeds(seed, 0, len(contexts))
            )
        with engine.watch("score", len(contexts)):
            verdicts = engine.submit(
                ScoreBatch(prompts=[p for p in prompts for _ in range(group)], texts=[t.text for t in texts])
            ).result()
        scores = torch.tensor([v.total for v in verdicts])
        compared = advantages(scores, torch.arange(len(texts)) // group, scale=self.credit.scale_rewards)
        credits = tuple(
            Credit(segment=text, advantage=float(value), stage="plan")
            for text, value in zip(texts, compared.values, strict=True)
        )
        stage = StageCredit(
            credits=credits,
            metrics=Numbers({"reward": compared.reward_mean, "reward_std": compared.reward_std}),
            num_groups=compared.num_groups,
            num_flat_groups=int((~compared.values.view(-1, group).bool().any(1)).sum()),
        )
        return Collected(phase="reason", leaves=[], stages=[stage], metrics=stage.metrics)
