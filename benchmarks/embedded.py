"""The embedded model that a benchmark runs on: given, shipped, or random weights of the pretraining recipe's sizes."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from r3_rl.assemble import load_policy, loop_settings
from r3_rl.errors import CheckpointError
from r3_rl.policy.bagel.autoencoder import Autoencoder
from r3_rl.policy.bagel.checkpoint import random_bagel, save_bagel
from r3_rl.policy.bagel.embedded import embedded_config
from r3_rl.policy.bagel.size import SizeSection
from r3_rl.policy.base import Policy
from r3_rl.recipe_io import load_recipe
from r3_rl.stages.settings import LoopSettings
from r3_rl.worlds.shapes.board import NINE
from r3_rl.worlds.shapes.drawing import BACKGROUND
from r3_rl.worlds.shapes.language import build_tokenizer
from r3_rl.worlds.shapes.shipped import weights_folder


def find_weights(model: str | None, scratch: Path) -> tuple[Path, str]:
    """The folder to load and what to call it."""
    if model is not None:
        return Path(model), "weights given by --model"
    with suppress(CheckpointError):
        return weights_folder(), "shipped weights"
    settings = load_recipe("shapes_pretrain").pretrain
    assert settings is not None
    tokenizer = build_tokenizer()
    config = embedded_config(
        SizeSection(**settings.model), tokenizer, image_size=NINE.image_size, background=BACKGROUND
    )
    save_bagel(random_bagel(config), Autoencoder(config.autoencoder), tokenizer, scratch / "random")
    return scratch / "random", "random weights of shapes_pretrain's sizes"


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """A policy without an adapter, and the loop of `shapes_r3`."""

    policy: Policy
    settings: LoopSettings
    origin: str


def load_embedded(model: str | None) -> Embedded:
    """`model`: folder of weights, or None."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, origin = find_weights(model, Path(scratch))
        recipe = load_recipe("shapes_r3", [f"model.path={folder}"])
        return Embedded(policy=load_policy(recipe.model).policy, settings=loop_settings(recipe.rollout), origin=origin)
