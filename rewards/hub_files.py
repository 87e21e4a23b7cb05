"""Weights that a scorer names on Hugging Face's hub, as a folder."""

from __future__ import annotations

from pathlib import Path

_WORDS = ("*.json", "*.txt", "*.jinja", "*.model")


def hub_folder(name: str, revision: str | None = None, *, pickled: bool = False) -> str:
    """The folder of a model's files: itself where it is one, else that of the hub's cache, fetched where it is missing.

    All files are asked for at once: a library that asks for one after the other tries each again for half a minute
    before it says that there is no network.

    Args:
        name: folder, or name on the hub such as `openai/clip-vit-large-patch14`.
        revision: branch, tag or commit of the hub; None takes the main branch.
        pickled: fetch `*.bin` too, where the repository has no safetensors; the caller must read it without running it.

    Raises OSError or ValueError when the hub does not have it, or cannot be reached and nothing is in the cache.

    >>> hub_folder(".")
    '.'
    """
    if Path(name).exists():
        return name
    from huggingface_hub import snapshot_download

    folder = snapshot_download(name, revision=revision, allow_patterns=[*_WORDS, "*.safetensors"])
    if pickled and not any(Path(folder).glob("*.safetensors")):
        folder = snapshot_download(name, revision=revision, allow_patterns=[*_WORDS, "*.bin"])
    return folder
