"""The toy backbone as pip would install it: a package that brings an entry point."""

from __future__ import annotations

from pathlib import Path


def install_toy(folder: Path) -> str:
    """Writes the package's metadata and returns the entry for `sys.path`."""
    information = folder / "site" / "toy-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[r3_rl.backbones]\ntoy = tests.policy.toy:TOY\n")
    return str(folder / "site")
