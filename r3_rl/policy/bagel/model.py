"""BAGEL: one decoder that reads text and images, writes text and denoises latents.

Shapes: U understanding tokens and G latent tokens of a packed batch, D decoder channels, C channels of a latent token,
V vocabulary. The state dict's keys are those of the released checkpoint.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r3_rl.policy.bagel.attention import CachePart
from r3_rl.policy.bagel.config import BagelConfig
from r3_rl.policy.bagel.layers import Decoded, Decoder, LanguageModel
from r3_rl.policy.bagel.packing import LookBlock, Packed, table_rows
from r3_rl.policy.bagel.vision import Connector, VisionModel, sincos_table
from r3_rl.policy.linear import Linear

# Below this t the division of a data prediction by t is held, or rounding noise would become velocity.
_SMALLEST_TIME = 0.05


class TimeEmbedder(nn.Module):
    """t in [0, 1], used as it is -> [G, D]: 256 sinusoids (cosines first), linear, SiLU, linear."""

    num_frequencies = 128

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            Linear(2 * self.num_frequencies, hidden_size), nn.SiLU(), Linear(hidden_size, hidden_size)
        )

    def sinusoids(self, times: Tensor) -> Tensor:
        """[G] -> float32 [G, 256], frequency_k = 10000^(-k / 128)."""
        k = torch.arange(self.num_frequencies, device=times.device, dtype=torch.float32)
        angle = times.float()[:, None] * 10000.0 ** (-k / self.num_frequencies)
        return torch.cat([angle.cos(), angle.sin()], -1)

    def forward(self, times: Tensor) -> Tensor:
        return self.mlp(self.sinusoids(times).to(self.mlp[0].weight.dtype))


class PositionTable(nn.Module):
    """A frozen 2-D sin-cos table, stored in the checkpoint under `pos_embed`."""

    def __init__(self, side: int, dim: int) -> None:
        super().__init__()
        self.side = side
        self.pos_embed = nn.Parameter(sincos_table(side, dim), requires_grad=False)

    def forward(self, rows: Tensor) -> Tensor:
        return F.embedding(rows, self.pos_embed)


@dataclass(kw_only=True)
class BagelOutput:
    """What one forward pass gives."""

    logits: Tensor
    """[scored tokens, V]."""
    velocity: Tensor
    """float32 [noisy latent tokens, C], noise - data."""
    decoded: Decoded

    @property
    def part(self) -> CachePart:
        """Keys and values of the batch, as a cache part."""
        assert self.decoded.part is not None
        return self.decoded.part


class Bagel(nn.Module):
    """The architecture in any size. Weights come from `checkpoint.load_bagel`."""

    def __init__(self, config: BagelConfig) -> None:
        super().__init__()
        self.config = config
        d = config.llm.hidden_size
        self.language_model = LanguageModel(config.llm)
        self.vit_model = VisionModel(config.vit)
        self.connector = Connector(config.vit.hidden_size, d)
        self.vit_pos_embed = PositionTable(config.vit_max_num_patch_per_side, d)
        self.time_embedder = TimeEmbedder(d)
        self.vae2llm = Linear(config.latent_channels, d)
        self.llm2vae = Linear(d, config.latent_channels)
        self.latent_pos_embed = PositionTable(config.max_latent_size, d)

    @property
    def decoder(self) -> Decoder:
        """The mixture-of-transformers stack."""
        return self.language_model.model

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.llm2vae.weight.device

    def embed_look(self, looks: list[LookBlock] | tuple[LookBlock, ...]) -> Tensor:
        """Understanding tokens of several images, one after the other: [sum of T, D]. Equal sizes run as one batch."""
        out = []
        for grid, same in itertools.groupby(looks, key=lambda b: b.grid):
            patches = torch.stack([b.patches for b in same]).to(self.device, self.connector.fc1.weight.dtype)
            rows = torch.from_numpy(table_rows(grid, self.vit_pos_embed.side)).to(self.device)
            features = self.tower(patches, grid) + self.vit_pos_embed(rows)
            out.append(features.flatten(0, 1))
        return torch.cat(out)

    def tower(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patches of images of one size [I, T, P] -> what the decoder is told of each, its place aside [I, T, D]."""
        rows = torch.from_numpy(table_rows(grid, self.vit_pos_embed.side)).to(self.device)
        return self.connector(self.vit_model(patches, rows))

    def embed_latents(self, latents: Tensor, times: Tensor, position_ids: Tensor) -> Tensor:
        """[G, C], [G], [G] -> [G, D]."""
        x = self.vae2llm(latents.to(self.vae2llm.weight.dtype))
        if times.numel() and bool((times == times[0]).all()):
            time = self.time_embedder(times[:1])  # one step of a batch: one time for all
        else:
            values, inverse = times.unique(return_inverse=True)
            # not indexed: many tokens' gradients meet in one row, and indexing adds them in any order
            time = F.embedding(inverse, self.time_embedder(values))
        return x + time + self.latent_pos_embed(position_ids)

    def embed(self, packed: Packed) -> Tensor:
        """The decoder's input [U + G, D]."""
        x = self.decoder.embed_tokens(packed.token_ids)
        if packed.looks:
            x = x.index_copy(0, packed.vit_index, self.embed_look(packed.looks).to(x.dtype))
        if packed.latents.shape[0] == 0:
            return x
        return torch.cat([x, self.embed_latents(packed.latents, packed.latent_times, packed.latent_position_ids)])

    def forward(
        self, packed: Packed, past: list[CachePart] | None = None, *, keep: bool = False, trace: bool = False
    ) -> BagelOutput:
        """One pass over a packed batch after the cached context `past`."""
        decoded = self.decoder(self.embed(packed), packed.layout, past, keep=keep, valid=packed.valid, trace=trace)
        num_und = packed.layout.num_understanding
        logits = self.language_model.lm_head(decoded.hidden.index_select(0, packed.score_index))
        noisy = packed.noisy_index
        out = self.llm2vae(decoded.hidden.index_select(0, noisy + num_und)).float()
        if self.config.prediction == "data":
            times = packed.latent_times.index_select(0, noisy)[:, None].clamp(min=_SMALLEST_TIME)
            out = (packed.latents.index_select(0, noisy).float() - out) / times
        return BagelOutput(logits=logits, velocity=out, decoded=decoded)


def init_weights(model: Bagel, *, seed: int = 0) -> Bagel:
    """Random weights for training from nothing: normal, residual outputs scaled down, the generation expert a copy of
    the understanding one (as the released model was started), a zero velocity head, positions that tell cells apart."""
    generator = torch.Generator().manual_seed(seed)
    depth = model.config.llm.num_hidden_layers
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in own.items():
            if name.endswith("pos_embed") or "norm" in name:
                continue
            if name.endswith("bias"):
                parameter.zero_()
                continue
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * _init_std(name, parameter, depth))
        for name, parameter in own.items():
            if "_moe_gen" in name:
                parameter.copy_(own[name.replace("_moe_gen", "")])
        model.llm2vae.weight.zero_()
        for table in (model.vit_pos_embed, model.latent_pos_embed):
            # a small grid lies in the flat start of the sin-cos table, where all rows are nearly one vector
            spread = sincos_table(table.side, table.pos_embed.shape[1], stretch=64 / table.side)
            table.pos_embed.copy_((spread - spread.mean(0)) / spread.std(0).clamp(min=0.1))
    return model


def _init_std(name: str, parameter: Tensor, depth: int) -> float:
    if name.endswith("position_embedding.weight"):
        return 0.5
    std = 0.02 if "embed_tokens" in name else min(0.06, parameter.shape[-1] ** -0.5)
    if name.endswith(("o_proj.weight", "down_proj.weight", "out_proj.weight", "fc2.weight")):
        return float(std / np.sqrt(2 * depth))
    return std
