"""Between pixels and latents: the convolutional autoencoder of the release, or pixels taken as latents.

Shapes: B images, H x W pixels, C latent channels, h x w latent pixels (h = H / downsample), p latent pixels per side
of a token, N = h / p * w / p tokens. Latents are scaled: scale_factor * (z - shift_factor).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from r3_rl.errors import CheckpointError, InputError, MissingPackageError
from r3_rl.policy.bagel.config import AutoencoderConfig


@dataclass(frozen=True, kw_only=True)
class StoredSlot:
    """Where a tensor of the released file belongs."""

    key: str
    """Its name in this module's state_dict."""
    shape: tuple[int, ...]
    """Its shape in the file; the module's own differs for attention, where a 1 x 1 convolution became a matrix."""


class Autoencoder(nn.Module):
    """Encodes images in [-1, 1] to scaled latents and back, whatever the kind.

    `flux` holds diffusers' AutoencoderKL; `identity` has no weights and hands pixels through, so that one latent code
    path serves both. Inputs are cast to the weights' type and outputs back to the input's: neither direction ever
    changes the type of the weights.

    >>> ae = Autoencoder(AutoencoderConfig(kind="identity", z_channels=3, downsample=1, scale_factor=1, shift_factor=0))
    >>> ae.encode(torch.full((1, 3, 2, 2), 0.5)).mean().item()
    0.5
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        if config.kind == "flux":
            self.net: nn.Module | None = _convolutional(config)
        elif config.kind == "identity":
            if (config.z_channels, config.downsample) != (3, 1):
                raise CheckpointError(
                    f"an identity autoencoder with z_channels {config.z_channels} and downsample {config.downsample}",
                    hint="it hands pixels through: z_channels is 3 and downsample is 1",
                )
            self.net = None
        else:
            raise CheckpointError(f"unknown autoencoder kind {config.kind!r}", hint="use 'flux' or 'identity'")
        self.requires_grad_(False)

    def moments(self, images: Tensor) -> Tensor:
        """Mean and log-variance before scaling, [B, 2 C, h, w], of images [B, 3, H, W] in [-1, 1]."""
        self._check(images)
        if self.net is None:
            # no spread: exp(-30 / 2) is below what float32 resolves next to a pixel
            return torch.cat([images, torch.full_like(images, -30.0)], dim=1)
        return self.net.encoder(images.to(self._dtype())).to(images.dtype)

    def encode(self, images: Tensor) -> Tensor:
        """The mean latent [B, C, h, w] of images [B, 3, H, W] in [-1, 1]; no sampling, so edits are reproducible."""
        mean, _ = self.moments(images).chunk(2, dim=1)
        return self._scale(mean)

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in about [-1, 1], not clamped, of scaled latents [B, C, h, w]."""
        z = latents / self.config.scale_factor + self.config.shift_factor
        return z if self.net is None else self.net.decoder(z.to(self._dtype())).to(latents.dtype)

    def stored_slots(self) -> dict[str, StoredSlot]:
        """Every tensor of `ae.safetensors` by its released name, with where it belongs in this module."""
        return {} if self.net is None else stored_slots(self.net, self.config)

    def stored_state(self) -> dict[str, Tensor]:
        """The weights under their released names and shapes, ready to be written as `ae.safetensors`."""
        state = self.state_dict()
        return {name: state[slot.key].reshape(slot.shape) for name, slot in self.stored_slots().items()}

    def _scale(self, z: Tensor) -> Tensor:
        return self.config.scale_factor * (z - self.config.shift_factor)

    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _check(self, images: Tensor) -> None:
        side = self.config.downsample
        if images.ndim != 4 or images.shape[1] != self.config.in_channels:
            raise InputError(f"images of shape {list(images.shape)}", hint="the autoencoder reads [batch, 3, H, W]")
        if images.shape[2] % side or images.shape[3] % side:
            raise InputError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels", hint=f"sides are multiples of {side}"
            )


def latents_to_tokens(latents: Tensor, patch: int) -> Tensor:
    """[B, C, h, w] -> [B, N, p * p * C]: patches of p x p latent pixels, row-major, as (row, column, channel fastest).

    >>> latents_to_tokens(torch.arange(8.0).view(1, 2, 2, 2), 2).tolist()
    [[[0.0, 4.0, 1.0, 5.0, 2.0, 6.0, 3.0, 7.0]]]
    """
    batch, channels, height, width = latents.shape
    if height % patch or width % patch:
        raise InputError(
            f"latents of {height} x {width} do not divide into tokens of {patch} x {patch}",
            hint="bring the image to a multiple of the latent stride",
        )
    rows, cols = height // patch, width // patch
    grid = latents.view(batch, channels, rows, patch, cols, patch).permute(0, 2, 4, 3, 5, 1)
    return grid.reshape(batch, rows * cols, patch * patch * channels)


def tokens_to_latents(tokens: Tensor, size: tuple[int, int], patch: int) -> Tensor:
    """The inverse of `latents_to_tokens`: [B, N, p * p * C] -> [B, C, h, w] with size = (h, w) in latent pixels.

    >>> x = torch.rand(2, 4, 6, 8)
    >>> torch.equal(tokens_to_latents(latents_to_tokens(x, 2), (6, 8), 2), x)
    True
    """
    batch, count, width = tokens.shape
    rows, cols = size[0] // patch, size[1] // patch
    if (size[0] % patch, size[1] % patch, rows * cols) != (0, 0, count):
        raise InputError(f"{count} tokens are not a latent of {size[0]} x {size[1]} in patches of {patch}")
    channels = width // patch**2
    grid = tokens.view(batch, rows, cols, patch, patch, channels).permute(0, 5, 1, 3, 2, 4)
    return grid.reshape(batch, channels, *size)


def _convolutional(config: AutoencoderConfig) -> nn.Module:
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise MissingPackageError(
            "the convolutional autoencoder needs diffusers", hint="pip install 'r3-rl[train]'"
        ) from error
    levels = len(config.ch_mult)
    if config.downsample != 2 ** (levels - 1):
        raise CheckpointError(
            f"ae_config.json: downsample {config.downsample} with {levels} levels",
            hint=f"{levels} entries of ch_mult shrink by {2 ** (levels - 1)}",
        )
    net: nn.Module = AutoencoderKL(
        in_channels=config.in_channels,
        out_channels=config.out_ch,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.ch * factor for factor in config.ch_mult),
        layers_per_block=config.num_res_blocks,
        latent_channels=config.z_channels,
        norm_num_groups=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return net.eval()


# The released names number the decoder's levels by resolution, diffusers by the order in which they run.
_RENAMES: tuple[tuple[str, Callable[[re.Match[str], int], str]], ...] = (
    (r"^(encoder|decoder)\.mid_block\.resnets\.(\d)\.", lambda m, n: f"{m[1]}.mid.block_{int(m[2]) + 1}."),
    (r"^(encoder|decoder)\.mid_block\.attentions\.0\.", lambda m, n: f"{m[1]}.mid.attn_1."),
    (r"^encoder\.down_blocks\.(\d+)\.resnets\.", lambda m, n: f"encoder.down.{m[1]}.block."),
    (r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", lambda m, n: f"encoder.down.{m[1]}.downsample."),
    (r"^decoder\.up_blocks\.(\d+)\.resnets\.", lambda m, n: f"decoder.up.{n - 1 - int(m[1])}.block."),
    (r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", lambda m, n: f"decoder.up.{n - 1 - int(m[1])}.upsample."),
    (r"\.conv_norm_out\.", lambda m, n: ".norm_out."),
    (r"\.conv_shortcut\.", lambda m, n: ".nin_shortcut."),
    (r"\.attn_1\.group_norm\.", lambda m, n: ".attn_1.norm."),
    (r"\.attn_1\.to_([qkv])\.", lambda m, n: f".attn_1.{m[1]}."),
    (r"\.attn_1\.to_out\.0\.", lambda m, n: ".attn_1.proj_out."),
)
_ATTENTION_MATRIX = re.compile(r"\.attn_1\.(q|k|v|proj_out)\.weight$")


def stored_slots(net: nn.Module, config: AutoencoderConfig) -> dict[str, StoredSlot]:
    """Released name -> slot for every tensor of a diffusers AutoencoderKL held as `net`."""
    slots: dict[str, StoredSlot] = {}
    for key, tensor in net.state_dict().items():
        name = key
        for pattern, rename in _RENAMES:
            name = re.sub(pattern, partial(_renamed, rename=rename, levels=len(config.ch_mult)), name)
        shape = (*tensor.shape, 1, 1) if _ATTENTION_MATRIX.search(name) else tuple(tensor.shape)
        slots[name] = StoredSlot(key=f"net.{key}", shape=shape)
    return slots


def _renamed(match: re.Match[str], *, rename: Callable[[re.Match[str], int], str], levels: int) -> str:
    return rename(match, levels)
