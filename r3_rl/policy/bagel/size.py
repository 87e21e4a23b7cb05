"""The sizes of a small BAGEL that a recipe can ask for, and what of them fits the images of a world. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from r3_rl.recipe.base import Problem, Section
from r3_rl.recipe.pretraining import MOST


class SizeSection(Section):
    """Section `pretrain.model` of a recipe."""

    hidden_size: int = Field(128, ge=16, le=MOST, description="Width of both experts.")
    num_layers: int = Field(6, ge=1, le=MOST, description="Layers.")
    num_heads: int = Field(4, ge=1, le=MOST, description="Query heads.")
    num_kv_heads: int = Field(2, ge=1, le=MOST, description="Key and value heads.")
    intermediate_size: int = Field(384, ge=16, le=MOST, description="Width of the feed-forward part.")
    latent_patch_size: int = Field(
        12, ge=1, le=MOST, description="Side of a latent token in pixels (identity autoencoder)."
    )
    vit_hidden_size: int = Field(128, ge=16, le=MOST, description="Width of the understanding tower.")
    vit_num_layers: int = Field(2, ge=1, le=MOST, description="Layers of the understanding tower.")
    vit_num_heads: int = Field(4, ge=1, le=MOST, description="Heads of the understanding tower.")
    vit_intermediate_size: int = Field(384, ge=16, le=MOST, description="Width of the tower's feed-forward part.")
    vit_patch_size: int = Field(12, ge=1, le=MOST, description="Side of a patch of the understanding tower in pixels.")

    def problems(self) -> Iterator[Problem]:
        for width, heads in (("hidden_size", "num_heads"), ("vit_hidden_size", "vit_num_heads")):
            if getattr(self, width) % getattr(self, heads):
                yield Problem(width, f"{getattr(self, width)} does not divide over {getattr(self, heads)} {heads}")
        if self.num_heads % self.num_kv_heads:
            yield Problem("num_kv_heads", f"{self.num_kv_heads} does not divide {self.num_heads} num_heads")

    def misfits(self, image_size: int) -> Iterator[Problem]:
        """Patches that do not divide a world's images.

        >>> [problem.message for problem in SizeSection(vit_patch_size=10).misfits(36)]
        ["10 does not divide the world's 36 pixels; use 9 or 12"]
        """
        for name in ("latent_patch_size", "vit_patch_size"):
            if image_size % (side := getattr(self, name)):
                fitting = " or ".join(map(str, _nearest_divisors(image_size, side)))
                yield Problem(name, f"{side} does not divide the world's {image_size} pixels; use {fitting}")


def _nearest_divisors(number: int, wanted: int) -> list[int]:
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return [*[n for n in divisors if n < wanted][-1:], *[n for n in divisors if n > wanted][:1]]
