"""A folder of weights of the embedded world, tiny and random, for what loads a folder."""

from __future__ import annotations

from pathlib import Path

from r3_rl.policy.bagel.autoencoder import Autoencoder
from r3_rl.policy.bagel.checkpoint import save_bagel
from tests.policy.tiny import CONFIG, TOKENIZER, tiny_policy


def world_folder(folder: Path) -> Path:
    """Configuration, weights and tokenizer, under the names of the shipped folder."""
    save_bagel(tiny_policy().model, Autoencoder(CONFIG.autoencoder), TOKENIZER, folder)
    return folder
