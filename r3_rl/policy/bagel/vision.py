"""The understanding tower: SigLIP blocks over the patches of one image at a time.

Shapes: I images of one size, T patches an image, W channels. Module names are those of the released checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r3_rl.policy.bagel.config import VisionConfig
from r3_rl.policy.linear import Linear


class VisionAttention(nn.Module):
    """Full attention inside one image."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        w = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.k_proj = Linear(w, w)
        self.v_proj = Linear(w, w)
        self.q_proj = Linear(w, w)
        self.out_proj = Linear(w, w)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        if x.shape[1] <= 256:  # short sequences: the plain product is faster than the fused kernel's backward on a CPU
            out = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class VisionMLP(nn.Module):
    """Linear, tanh-GELU, linear."""

    def __init__(self, width: int, inner: int, out: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, inner)
        self.fc2 = Linear(inner, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class VisionLayer(nn.Module):
    """Pre-LayerNorm attention and MLP."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        w, eps = config.hidden_size, config.layer_norm_eps
        self.self_attn = VisionAttention(config)
        self.layer_norm1 = nn.LayerNorm(w, eps=eps)
        self.mlp = VisionMLP(w, config.intermediate_size, w)
        self.layer_norm2 = nn.LayerNorm(w, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _Embeddings(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        side = config.image_size // config.patch_size
        self.patch_embedding = Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.position_embedding = nn.Embedding(side * side, config.hidden_size)


class _Encoder(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))


class _Tower(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class VisionModel(nn.Module):
    """Patches [I, T, patch * patch * 3] and position ids [T] -> features [I, T, W] after the post LayerNorm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.vision_model = _Tower(config)

    def forward(self, patches: Tensor, position_ids: Tensor) -> Tensor:
        tower = self.vision_model
        x = tower.embeddings.patch_embedding(patches) + tower.embeddings.position_embedding(position_ids)
        for layer in tower.encoder.layers:
            x = layer(x)
        return tower.post_layernorm(x)


class Connector(VisionMLP):
    """From the tower's width to the decoder's: `connector.fc1`, `connector.fc2`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden, hidden)


def sincos_table(side: int, dim: int, *, stretch: float = 1.0) -> Tensor:
    """Fixed 2-D position table [side * side, dim]: row r * side + c holds (enc(c), enc(r)), the column first.

    enc(x) = (sin(s x w), cos(s x w)) with w_k = 10000^(-k / (dim / 4)) and s = `stretch` (1 in the release).

    >>> sincos_table(2, 8).shape
    torch.Size([4, 8])
    """
    frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angle = stretch * torch.arange(side, dtype=torch.float64)[:, None] * frequency
    code = torch.cat([angle.sin(), angle.cos()], 1)
    column = code[None].expand(side, side, -1)
    row = code[:, None].expand(side, side, -1)
    return torch.cat([column, row], -1).reshape(side * side, dim).float()
