"""Files of a model that cannot be read, in words that help: often git-lfs left a pointer in place of the file."""

from __future__ import annotations

from pathlib import Path

from r3_rl.errors import CheckpointError

_POINTER = b"version https://git-lfs"


def unreadable(path: Path, words: str, *, hint: str = "download it again") -> CheckpointError:
    """Return the error for a file that cannot be read; one that is a git-lfs pointer is called so.

    Args:
        path: of the file.
        words: what is wrong with it.
        hint: what helps unless it is a pointer.

    >>> print(unreadable(Path("no/config.json"), "not JSON"))
    no/config.json: not JSON; download it again
    """
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(_POINTER)) == _POINTER
    except OSError:
        is_pointer = False
    if is_pointer:
        return CheckpointError(f"{path}: a git-lfs pointer, not the file", hint="run `git lfs pull` in its folder")
    return CheckpointError(f"{path}: {words}", hint=hint)
