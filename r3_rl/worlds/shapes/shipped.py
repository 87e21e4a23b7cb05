"""Where the small pretrained models and adapters of them lie that ship with the package."""

from __future__ import annotations

from pathlib import Path

from r3_rl.errors import CheckpointError

PLACE = Path(__file__).resolve().parent


def weights_folder(place: Path = PLACE, *, recipe: str = "shapes_pretrain", base: str = "weights") -> Path:
    """Folder of a shipped embedded model: configuration, weights and tokenizer. Raises CheckpointError without it."""
    folder = place / base
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is missing",
            hint=f"make one with `r3 pretrain {recipe}` and give its weights/ as model.path, or reinstall r3-rl",
        )
    return folder


def adapter_folder(place: Path = PLACE, *, world: str = "shapes") -> Path:
    """Folder of the adapter that the world's R3 recipe trained on the embedded model, with its card.

    Raises CheckpointError without it.
    """
    folder = place / "adapter"
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing", hint=f"make one with `r3 train {world}_r3`, or reinstall r3-rl")
    return folder
