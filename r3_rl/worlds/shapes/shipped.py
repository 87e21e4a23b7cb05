"""Where the small pretrained model lies that ships with the package."""

from __future__ import annotations

from pathlib import Path

from r3_rl.errors import CheckpointError


def weights_folder() -> Path:
    """Folder of the shipped embedded model: configuration, weights and tokenizer. Raises CheckpointError without it."""
    folder = Path(__file__).resolve().parent / "weights"
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is missing", hint="make it with `r3 pretrain recipes/shapes_pretrain.yaml`, or reinstall r3-rl"
        )
    return folder
