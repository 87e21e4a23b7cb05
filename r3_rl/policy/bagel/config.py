"""Sizes of a BAGEL model, read from the JSON files that lie beside its weights.

One architecture in two sizes: the embedded model and the released 14.6 B model differ in these numbers only.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r3_rl.errors import CheckpointError
from r3_rl.policy.bagel.config_files import read_fields, refuse_heads, rotary_base
from r3_rl.policy.unreadable import unreadable


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """The mixture-of-transformers decoder (Qwen2 with q/k norms and a second expert for latent tokens)."""

    vocab_size: int = 152064
    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    shared_experts: bool = False
    """One expert for both kinds of token: the layers have no `_moe_gen` weights. The release has two."""

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The SigLIP understanding tower. `num_hidden_layers` is the number of layers to build."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 26
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 980
    patch_size: int = 14
    layer_norm_eps: float = 1e-6
    image_mean: float = 0.5
    """Taken from the pixels in [0, 1] before they are divided by `image_std`."""
    image_std: float = 0.5


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """`flux`: the convolutional autoencoder of the release. `identity`: latents are the pixels themselves."""

    kind: str = "flux"
    in_channels: int = 3
    out_ch: int = 3
    downsample: int = 8
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 16
    scale_factor: float = 0.3611
    shift_factor: float = 0.1159


@dataclass(frozen=True, kw_only=True)
class ResizeRule:
    """Longest side, shortest side and stride (pixels) that an image is brought to."""

    longest: int
    shortest: int
    stride: int


@dataclass(frozen=True, kw_only=True)
class BagelConfig:
    """Everything the architecture needs to know about its size.

    >>> config = BagelConfig()
    >>> config.llm.head_dim, config.latent_channels, config.latent_stride
    (128, 64, 16)
    """

    llm: LanguageConfig = field(default_factory=LanguageConfig)
    vit: VisionConfig = field(default_factory=VisionConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    latent_patch_size: int = 2
    """Latent pixels per side of one latent token."""
    max_latent_size: int = 64
    """Side of the latent position table; the released weights need 64."""
    vit_max_num_patch_per_side: int = 70
    """Side of the position table that is added to understanding tokens."""
    timestep_shift: float = 1.0
    prediction: str = "velocity"
    """What the head returns: `velocity` (noise - data), or `data`, turned into a velocity by (x_t - data) / t."""
    vae_resize: ResizeRule = field(default_factory=lambda: ResizeRule(longest=1024, shortest=512, stride=16))
    vit_resize: ResizeRule = field(default_factory=lambda: ResizeRule(longest=980, shortest=224, stride=14))
    special_token_ids: dict[str, int] | None = None
    """bos_token_id, eos_token_id, start_of_image, end_of_image; None: looked up in the tokenizer by name."""

    @property
    def latent_channels(self) -> int:
        """Channels of one latent token."""
        return self.latent_patch_size**2 * self.autoencoder.z_channels

    @property
    def latent_stride(self) -> int:
        """Image pixels per side of one latent token."""
        return self.latent_patch_size * self.autoencoder.downsample

    @classmethod
    def from_folder(cls, folder: str | Path) -> BagelConfig:
        """Reads `llm_config.json`, `vit_config.json` and, where present, `bagel_config.json` and `ae_config.json`.

        The release has only the first two; the values its code forces after reading them are the defaults here, and
        one vision layer fewer than its file names is built (the last SigLIP block is dropped).
        """
        folder = Path(folder)
        paths = {name: folder / f"{name}_config.json" for name in ("bagel", "vit", "llm", "ae")}
        bagel = _read(paths["bagel"], required=False)
        language, vision = _read(paths["llm"]), _read(paths["vit"])
        language |= rotary_base(paths["llm"], language)
        for path, values in ((paths["llm"], language), (paths["vit"], vision)):
            if "num_hidden_layers" not in values:
                raise CheckpointError(f"{path}: num_hidden_layers is missing", hint="download the file again")
        llm, vit = read_fields(LanguageConfig, language, paths["llm"]), read_fields(VisionConfig, vision, paths["vit"])
        if not bagel:
            vit = dataclasses.replace(vit, num_hidden_layers=vit.num_hidden_layers - 1)
        refuse_heads(paths["llm"], language, llm.hidden_size, llm.num_attention_heads, llm.num_key_value_heads)
        refuse_heads(paths["vit"], vision, vit.hidden_size, vit.num_attention_heads)
        autoencoder = read_fields(AutoencoderConfig, _read(paths["ae"], required=False), paths["ae"])
        own = {name: value for name, value in bagel.items() if name not in ("llm", "vit", "autoencoder")}
        top = read_fields(cls, own, paths["bagel"])
        return dataclasses.replace(top, llm=llm, vit=vit, autoencoder=autoencoder)

    def to_folder(self, folder: str | Path) -> None:
        """Writes the four JSON files that `from_folder` reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        top = dataclasses.asdict(self)
        parts = {"llm_config.json": top.pop("llm"), "vit_config.json": top.pop("vit")}
        parts["ae_config.json"] = top.pop("autoencoder")
        parts["bagel_config.json"] = top
        for name, content in parts.items():
            (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def shares_experts(folder: Path) -> bool:
    """Whether a folder's model has one expert for both kinds of token. Raises CheckpointError for a damaged file."""
    return bool(_read(folder / "llm_config.json").get("shared_experts", False))


def _read(path: Path, *, required: bool = True) -> dict[str, Any]:
    if not path.is_file():
        if required:
            raise CheckpointError(f"{path} is missing", hint="a BAGEL folder holds llm_config.json and vit_config.json")
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise unreadable(path, f"not JSON ({error})") from error
    if not isinstance(content, dict):
        raise unreadable(path, "not a JSON object")
    return content
