"""What a run's numbers depend on, without saying where it ran."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("r3-rl", "torch", "transformers", "peft", "accelerate", "trl", "diffusers", "deepspeed", "torchjd", "numpy")


def environment(*, dtype: str, device: str = "cpu") -> dict[str, Any]:
    """What the run's numbers depend on: versions, threads, processor, number format. No host names, no paths.

    Args:
        dtype: the number format that the policy computes in, such as `bfloat16`.
        device: where the policy lives: `cpu`, `cuda`, ...

    Returns:
        What belongs into `environment.json`.
    """
    import torch

    found = {name: installed_version(name) for name in PACKAGES}
    described: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "dtype": dtype,
        "packages": {name: version for name, version in found.items() if version},
    }
    if device.startswith("cuda"):
        described["accelerator"] = torch.cuda.get_device_name(device)
        described["cuda"] = torch.version.cuda
    return described


def installed_version(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
