"""Where the small pretrained model and an adapter of it lie that ship with the package."""

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


def adapter_folder() -> Path:
    """Folder of the adapter that `shapes_r3` trained on the embedded model, with its card.

    Raises CheckpointError without it.
    """
    folder = Path(__file__).resolve().parent / "adapter"
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing", hint="make one with `r3 train shapes_r3`, or reinstall r3-rl")
    return folder
