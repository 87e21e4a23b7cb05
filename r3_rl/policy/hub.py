"""Weights by their name on Hugging Face's hub: fetched once into its cache, found there later without a network."""

from __future__ import annotations

import re
from pathlib import Path

from r3_rl.errors import CheckpointError

_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def is_hub_id(path: str) -> bool:
    """Whether `path` is a name on the hub and no folder here.

    >>> is_hub_id("owner/model-7B"), is_hub_id("/weights/model"), is_hub_id("../model")
    (True, False, False)
    """
    return _ID.fullmatch(path) is not None and not Path(path).is_dir()


def fetch(name: str, *, revision: str | None = None, weights: bool = True) -> Path:
    """The folder of a repository's files in the hub's cache, fetched where they are not there yet.

    Only safetensors and JSON are fetched: a pickled file can run code.

    Args:
        name: such as `OWNER/MODEL`.
        revision: branch, tag or commit; None takes the main branch.
        weights: False leaves the weights out (sizes and tokenizer for random ones).

    Raises CheckpointError when the hub does not have it, or cannot be reached and nothing is in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", *(["*.safetensors"] if weights else [])]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = f" at revision '{revision}'" if revision else ""
        raise CheckpointError(
            f"{name}{at} is no folder here, not in the hub's cache, and was not fetched ({type(error).__name__})",
            hint=f"where there is a network: hf download {name} --local-dir FOLDER, then model.path=FOLDER",
        ) from error
