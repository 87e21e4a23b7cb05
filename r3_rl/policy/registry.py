"""Finding a backbone by its name, or by the folder of weights that it is asked to load. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from r3_rl import registered
from r3_rl.errors import CheckpointError
from r3_rl.policy.backbone import Backbone
from r3_rl.recipe.sampling import RECOGNISED

if TYPE_CHECKING:
    import torch

    from r3_rl.policy.base import Policy


def names() -> tuple[str, ...]:
    """Return the names of all backbones, ours first; nothing is imported.

    >>> "auto" in names()
    False
    """
    return registered.names(registered.BACKBONES)


def find(name: str) -> Backbone:
    """Return the backbone of a name.

    Raises:
        InputError: no backbone is called so, or its package cannot be imported.
    """
    found: Backbone = registered.find(registered.BACKBONES, name)
    return found


def backbone_of(folder: str | Path, kind: str = "auto") -> Backbone:
    """Return the backbone that a folder of weights belongs to.

    Args:
        folder: of weights.
        kind: a name, whose backbone the folder has to be; `auto` and `embedded` try them all.

    Raises:
        CheckpointError: the folder is none of theirs.
    """
    folder = Path(folder)
    tried = [find(name) for name in (names() if kind in RECOGNISED else (kind,))]
    reasons = {backbone: backbone.refusal(folder) for backbone in tried}
    for backbone, reason in reasons.items():
        if not reason:
            return backbone
    why = ", ".join(f"not a {backbone.spec.title} folder: {reason}" for backbone, reason in reasons.items())
    raise CheckpointError(f"{folder} is {why}", hint="check model.path")


def pretrained_backbone(kind: str, start: str | None) -> Backbone:
    """Return the backbone of a model that a recipe pretrains.

    Args:
        kind: `model.kind`; `auto` and `embedded` take the default one.
        start: the folder that it goes on from, which decides then; None starts from random weights.

    Raises:
        CheckpointError: the folder is none of theirs.
    """
    if start is not None:
        return backbone_of(start, kind)
    return find(registered.default(registered.BACKBONES) if kind in RECOGNISED else kind)


def load(folder: str | Path, *, dtype: torch.dtype | None = None, device: str = "cpu") -> Policy:
    """Return the policy of a folder of weights, frozen, whichever backbone it belongs to.

        policy = load("merged")
        policy.module  # a torch module, which peft can adapt

    Args:
        folder: of weights.
        dtype: of the weights; None takes float32.
        device: where they go.

    Raises:
        CheckpointError: the folder is no backbone's, or its files do not fit.
    """
    import torch

    return backbone_of(folder).load(Path(folder), dtype=dtype or torch.float32, device=device)
