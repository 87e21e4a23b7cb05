"""Distances between two sets of images: FID and KID through Inception, CMMD through CLIP.

FID and KID are torchmetrics' own; what differs between tools is how images are resized and which weights read them, so
the weights are given by path. Below a few thousand images FID is biased upwards, and KID is the one to read.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from r3_rl.errors import InputError, MissingPackageError, one_line
from r3_rl.importing import closest
from r3_rl.pixels import flat_rgb

SIGMA, SCALE = 10.0, 1000.0
"""Of CMMD, as its authors set them."""
INSTALL = "pip install 'r3-rl[eval]'"
FETCH_INCEPTION = "fetch weights-inception-2015-12-05-6726825d.pth from torch-fidelity's release v0.2.0 on GitHub"
FETCH_CLIP = "fetch CLIP's weights, such as OpenAI's ViT-L-14-336px.pt, and write ViT-L-14-336:FILE"
PACKAGES = {"inception": ("torchmetrics", "torch_fidelity"), "clip": ("open_clip",)}
"""What each measure needs."""
Embed = Callable[[Sequence[Path]], np.ndarray]
"""Image files -> embeddings float64 [n, D], each of length 1."""


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Between drawn and real images; smaller is nearer."""

    fid: float
    kid: float


def check_weights(weights: Mapping[str, Any], place: str) -> None:
    """Look whether what reads the images is there, before any image is drawn.

    Args:
        weights: `inception`, a file, and `clip`, open_clip's `NAME:TAG`; what is absent is not measured.
        place: where they are named, for errors.

    Raises:
        InputError: another key, or a file that is missing; the line says what to fetch and where to name it.
            MissingPackageError: a package that is not installed.
    """
    for key, value in weights.items():
        if key not in PACKAGES:
            raise InputError(f"{place}: nothing is called '{one_line(str(key), 40)}'", hint=closest(str(key), PACKAGES))
        if key == "inception" and not Path(str(value)).is_file():
            raise InputError(f"{place}.inception: no such file: '{value}'", hint=FETCH_INCEPTION)
        tag = str(value).partition(":")[2]
        if key == "clip" and not tag:  # open_clip would take random weights
            raise InputError(f"{place}.clip: '{value}' names no weights", hint=FETCH_CLIP)
        if key == "clip" and ("/" in tag or Path(tag).suffix) and not Path(tag).is_file():
            raise InputError(f"{place}.clip: no such file: '{tag}'", hint=FETCH_CLIP)
        if lacking := [name for name in PACKAGES[key] if find_spec(name) is None]:
            raise MissingPackageError(f"{place}.{key} needs the package {lacking[0].replace('_', '-')}", hint=INSTALL)


def frechet_and_kernel(real: Sequence[Path], drawn: Sequence[Path], extractor: nn.Module) -> Distances:
    """Return FID and KID (its mean over 100 subsets of at most 1,000 images).

    FID = |m_r - m_d|^2 + tr(C_r + C_d - 2 (C_r C_d)^(1/2)), KID = MMD^2 with the kernel (x.y / D + 1)^3.

    Args:
        real: image files, 2 or more.
        drawn: image files, 2 or more.
        extractor: uint8 [1, 3, H, W] -> features [1, D].

    Raises:
        MissingPackageError: torchmetrics is not installed.

    Source: Heusel et al. 2017 (FID), Binkowski et al. 2018 (KID).
    """
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError:
        raise MissingPackageError("FID and KID need torchmetrics", hint=INSTALL) from None
    fid = FrechetInceptionDistance(feature=extractor)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*save all extracted features")  # 60,000 of them are half a GB
        kid = KernelInceptionDistance(feature=extractor, subset_size=min(1000, len(real), len(drawn)))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the subsets
        for files, is_real in ((real, True), (drawn, False)):
            for file in files:
                for metric in (fid, kid):
                    metric.update(_pixels(file), real=is_real)
        return Distances(fid=float(fid.compute()), kid=float(kid.compute()[0]))


def inception(weights: Path) -> nn.Module:
    """Return the Inception network of FID with the weights of a file.

    Args:
        weights: `weights-inception-2015-12-05-6726825d.pth`, as torch-fidelity publishes it.

    Raises:
        InputError: a file that holds something else.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        return NoTrainInceptionV3(
            name="inception-v3-compat", features_list=["2048"], feature_extractor_weights_path=str(weights)
        )
    except (RuntimeError, OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(
            f"{weights}: not Inception's weights ({one_line(str(error), 60)})", hint=FETCH_INCEPTION
        ) from None


def clip_embedder(weights: str) -> Embed:
    """Return CLIP's image tower, for CMMD.

    Args:
        weights: open_clip's `NAME:TAG`, such as `ViT-L-14-336:openai`; the tag may be a file.

    Raises:
        InputError: weights that cannot be read or fetched, or an architecture that open_clip does not know.
    """
    import open_clip

    name, _, tag = weights.partition(":")
    try:
        model, _, transform = open_clip.create_model_and_transforms(name, pretrained=tag)
    except Exception as error:  # open_clip, torch, the hub and the unpickler each raise their own
        raise InputError(f"CMMD: '{weights}' cannot be read ({one_line(str(error), 60)})", hint=FETCH_CLIP) from None
    model.eval()

    @torch.no_grad()
    def embed(files: Sequence[Path]) -> np.ndarray:
        found = []
        for file in files:
            with Image.open(file) as opened:
                vector = model.encode_image(transform(flat_rgb(opened)).unsqueeze(0))
            found.append((vector / vector.norm(dim=-1, keepdim=True)).double().numpy())
        return np.concatenate(found)

    return embed


def cmmd(real: np.ndarray, drawn: np.ndarray) -> float:
    """Return the maximum mean discrepancy of embeddings, times 1,000.

    CMMD = 1000 (mean k(r, r') + mean k(d, d') - 2 mean k(r, d)), k(x, y) = exp(-|x - y|^2 / (2 sigma^2)), sigma = 10;
    means over all pairs, an image with itself included, as its authors compute it.

    Args:
        real: float64 [n, D], of length 1 each.
        drawn: float64 [m, D].

    Source: Jayasumana et al., Rethinking FID (2024).

    >>> points = np.eye(3)
    >>> cmmd(points, points)
    0.0
    """
    return SCALE * max(0.0, _kernel(real, real) + _kernel(drawn, drawn) - 2 * _kernel(real, drawn))


def _kernel(one: np.ndarray, other: np.ndarray) -> float:
    """The mean over all pairs, in blocks."""
    total = 0.0
    for start in range(0, len(one), 1000):
        block = one[start : start + 1000]
        squared = (block**2).sum(1)[:, None] + (other**2).sum(1)[None] - 2 * block @ other.T
        total += float(np.exp(-squared / (2 * SIGMA**2)).sum())
    return total / (len(one) * len(other))


def _pixels(file: Path) -> torch.Tensor:
    """uint8 [1, 3, H, W]."""
    with Image.open(file) as opened:
        return torch.from_numpy(np.array(flat_rgb(opened))).permute(2, 0, 1).unsqueeze(0)
