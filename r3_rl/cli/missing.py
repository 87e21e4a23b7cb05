"""What a verb says where a package of an extra is not installed."""

from __future__ import annotations

from r3_rl.doctor import PACKAGES

_MODULES = {"open_clip_torch": "open_clip"}
"""Packages that are imported by another name."""


def line_of(error: ModuleNotFoundError) -> str | None:
    """Return the line for a user, or None if it was no package of an extra that was missing.

    >>> line_of(ModuleNotFoundError("No module named 'torchjd'", name="torchjd"))
    "r3: the package torchjd is not installed; pip install 'r3-rl[balance]'"
    >>> line_of(ModuleNotFoundError("No module named 'torchjd.x'", name="torchjd.x"))
    """
    for extra, packages in PACKAGES.items():
        if error.name in [_MODULES.get(package, package) for package in packages]:
            return f"r3: the package {error.name} is not installed; pip install 'r3-rl[{extra}]'"
    return None
