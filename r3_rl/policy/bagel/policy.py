"""BAGEL as a policy: it writes, draws and scores again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from tokenizers import Tokenizer
from torch import Tensor

from r3_rl.modalities import Context, ImageSegment, Segment, TextSegment
from r3_rl.policy.backbone import BackboneSpec
from r3_rl.policy.bagel import replay as _replay
from r3_rl.policy.bagel import sampler, supervised, writer
from r3_rl.policy.bagel.backbone import BAGEL, SHARED
from r3_rl.policy.bagel.model import Bagel
from r3_rl.policy.bagel.reader import Reader, kept_pieces
from r3_rl.policy.base import (
    Drawing,
    Example,
    Heard,
    Layered,
    Replay,
    Sampling,
    SupervisedLoss,
    SupervisedNoise,
)
from r3_rl.policy.prefixes import spans
from r3_rl.policy.reference import Base
from r3_rl.policy.routing import told


class BagelPolicy:
    """The `Policy` protocol over a `Bagel` of any size, with or without an adapter."""

    def __init__(self, model: Bagel, reader: Reader) -> None:
        self.model, self.reader = model, reader
        self._base = Base(model)

    @property
    def spec(self) -> BackboneSpec:
        """That of two experts or of shared ones, as the model has them."""
        return (SHARED if self.model.config.llm.shared_experts else BAGEL).spec

    @property
    def module(self) -> torch.nn.Module:
        """The weights."""
        return self.model

    @property
    def companions(self) -> Mapping[str, torch.nn.Module]:
        """The autoencoder."""
        return {"autoencoder": self.reader.autoencoder}

    @property
    def layered(self) -> Layered:
        """The decoder."""
        return self.model.decoder

    @property
    def tokenizer(self) -> Tokenizer:
        """The reader's."""
        return self.reader.tokenizer

    def write(
        self,
        contexts: Sequence[Context],
        sampling: Sampling,
        seeds: Sequence[int],
        heard: Sequence[Heard | None] | None = None,
    ) -> list[TextSegment]:
        """One text a context, sampled with its own seed."""
        return writer.write(self.model, self.reader, contexts, sampling, seeds, heard) if contexts else []

    def draw(
        self,
        contexts: Sequence[Context],
        drawings: Sequence[Drawing],
        seeds: Sequence[int],
        noise_seeds: Sequence[int] | None = None,
    ) -> list[ImageSegment]:
        """One image a context, drawn with its own seed (and, where given, another row's initial noise)."""
        if not contexts:
            return []
        return sampler.draw(self.model, self.reader, contexts, drawings, seeds, noise_seeds)

    def replay(self, segments: Sequence[Segment]) -> list[Replay]:
        """Log-probs under the current weights, with gradient."""
        return _replay.replay(self.model, self.reader, segments)

    def supervised(
        self, examples: Sequence[Example], noise: SupervisedNoise, generator: torch.Generator
    ) -> SupervisedLoss:
        """Summed losses of supervised examples; images of one call have one size."""
        images = [e.image for e in examples if e.image is not None]
        count = noise.times_per_image
        times = torch.sigmoid(torch.randn(len(images), count, generator=generator) + noise.time_mean)
        shape = self._latent_shape(images[0]) if images else (1, self.model.config.latent_channels)
        drawn = torch.randn(len(images), count, *shape, generator=generator)
        return self.supervised_at(examples, times, drawn, soften_below=noise.soften_below)

    def supervised_at(
        self, examples: Sequence[Example], times: Tensor, noise: Tensor, *, soften_below: float = 0.0
    ) -> SupervisedLoss:
        """The same with times float32 [images, K] and noise float32 [images, K, M, C] of the caller's."""
        return supervised.supervised_loss(self.model, self.reader, examples, times, noise, soften_below=soften_below)

    def supervised_sizes(self, examples: Sequence[Example], noise: SupervisedNoise) -> tuple[int, int]:
        """Latent dimensions of the targets at all their noise levels, and answer tokens with their ends."""
        num_flow = sum(math.prod(self._latent_shape(e.image)) for e in examples if e.image is not None)
        num_text = sum(len(self.reader.token_ids(e.answer)) + 1 for e in examples if e.answer is not None)
        return noise.times_per_image * num_flow, num_text

    def _latent_shape(self, image: Tensor) -> tuple[int, int]:
        """Latent tokens of an image [3, H, W], and the channels of each."""
        return math.prod(self.reader.grid((image.shape[1], image.shape[2]))), self.model.config.latent_channels

    def checkpoint_activations(self, enabled: bool) -> None:
        """Of the decoder's layers."""
        self.model.decoder.gradient_checkpointing = enabled

    def cache_bytes(self, segments: Sequence[Segment]) -> int:
        """A text's own tokens, and every prefix of the contexts once, those that guidance drops something from
        included."""
        llm = self.model.config.llm
        a_token = 2 * llm.num_hidden_layers * llm.num_key_value_heads * llm.head_dim
        a_token *= self.model.llm2vae.weight.element_size()
        contexts, tasks = [s.context for s in segments], told(self.model, [s.task for s in segments])
        for s, task in zip(segments, list(tasks), strict=True):
            if isinstance(s, ImageSegment):
                guidance = s.drawing.guidance
                drops = [*(["text"] * guidance.needs_text_drop), *(["image"] * guidance.needs_image_drop)]
                contexts += [kept_pieces(s.context, drop) for drop in drops]
                tasks += [task] * len(drops)
        tokens = sum(len(s.token_ids) for s in segments if isinstance(s, TextSegment))
        tokens += sum(self.reader.num_tokens(span.pieces) for level in spans(contexts, tasks=tasks) for span in level)
        return a_token * tokens

    def num_tokens(self, segments: Sequence[Segment]) -> int:
        """Tokens that replaying the segments together reads."""
        return _replay.replayed_tokens(self.model, self.reader, segments)

    def remember_base(self, *, on_host: bool = False) -> None:
        """Keeps a copy of the weights that are about to be trained."""
        self._base.remember(on_host=on_host)

    def base_restored(self) -> AbstractContextManager[None]:
        """Inside, the caller has put the base's weights back itself."""
        return self._base.restored()

    def reference(self) -> AbstractContextManager[None]:
        """Inside, the policy is the base again."""
        return self._base.reference()
