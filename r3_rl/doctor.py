"""What this machine and installation can do. Names no host, user or folder, so that it can go into an issue."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from r3_rl.observe.environment import installed_version
from r3_rl.process import KEEPING, physical_cores

PACKAGES = {
    "train": (
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "diffusers",
        "safetensors",
        "tokenizers",
        "trl",
        "scipy",
        "psutil",
    ),
    "balance": ("torchjd",),
    "clip": ("open_clip_torch", "torchvision"),
    "rewards": ("rapidocr", "onnxruntime", "rapidfuzz"),
    "judge": ("openai",),
    "serve": ("fastapi", "uvicorn", "msgpack", "httpx"),
    "play": ("gradio",),
    "eval": ("torchmetrics", "open_clip_torch"),
    "track": ("tensorboard",),
    "deepspeed": ("deepspeed",),
}
"""Optional packages by the extra that installs them."""


class Finding(NamedTuple):
    """One line of the report."""

    name: str
    value: str
    advice: str = ""
    """What to do about it; empty when all is well."""


def doctor() -> None:
    """Print one line a finding, and advice below the lines that need some."""
    for finding in examine():
        print(f"{finding.name:<24} {finding.value}".rstrip())
        if finding.advice:
            print(f"{'':<24} -> {finding.advice}")


def examine() -> Iterator[Finding]:
    """Look at versions, processor, accelerator, allocator, disk and optional packages, in that order."""
    yield Finding("r3-rl", installed_version("r3-rl") or "not installed")
    yield Finding("python", platform.python_version())
    yield Finding("system", f"{platform.system()} {platform.machine()}, {physical_cores()} physical cores")
    yield Finding("processor units", _processor_units())
    yield from _torch()
    yield _allocator()
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield Finding("disk", f"{free:.0f} GiB free here", "a run with checkpoints needs some" if free < 2 else "")
    for extra, names in PACKAGES.items():
        found = {name: installed_version(name) for name in names}
        missing = [name for name, installed in found.items() if installed is None]
        text = ", ".join(f"{name} {installed or 'missing'}" for name, installed in found.items())
        yield Finding(f"extra {extra}", text, f"pip install 'r3-rl[{extra}]'" if missing else "")


def matmul_gflops(dtype_name: str, seconds: float = 0.2, size: int = 1024) -> float:
    """Measured speed of a model's matrix products on the CPU, in 1e9 operations a second.

    Args:
        dtype_name: `float32` or `bfloat16`.
        seconds: how long to measure.
        size: side of the matrices.
    """
    import torch

    from r3_rl.policy.linear import linear

    left, right = (torch.randn(size, size).to(getattr(torch, dtype_name)) for _ in range(2))
    linear(left, right)
    begin, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begin) < seconds or count == 0:
        linear(left, right)
        count += 1
    return 2 * size**3 * count / elapsed / 1e9


def _processor_units() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "unknown on this system"
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
    present = [flag for flag in wanted if flag in line.split()]
    return ", ".join(present) or "none that matter here"


def _torch() -> Iterator[Finding]:
    if installed_version("torch") is None:
        yield Finding("torch", "missing", "pip install 'r3-rl[train]'")
        return
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    yield Finding("torch", f"{torch.__version__} ({build}), {torch.get_num_threads()} threads")
    single, half = matmul_gflops("float32"), matmul_gflops("bfloat16")
    slow = "bfloat16 is slower here: set model.dtype to float32" if half < single else ""
    yield Finding("matrix products", f"float32 {single:.0f}, bfloat16 {half:.0f} GFLOP/s", slow)
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            yield Finding(f"accelerator {index}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB")
    else:
        advice = "torch is built for CUDA and finds no device" if torch.version.cuda else ""
        yield Finding("accelerator", "none", advice)
    yield from _torchvision()


def _torchvision() -> Iterator[Finding]:
    if installed_version("torchvision") is None:
        return
    from r3_rl.torchvision_guard import guard

    guarded = "a CUDA build beside a CPU torch; r3 lets it load all the same" if guard() else "loads"
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        reason = f"fails to load: {type(error).__name__}"
        yield Finding("torchvision", reason, f"install the torchvision made for torch {installed_version('torch')}")
    else:
        yield Finding("torchvision", guarded)


def _allocator() -> Finding:
    if not sys.platform.startswith("linux"):
        return Finding("allocator", "the system's own")
    ready = all(name in os.environ for name in KEEPING)
    return Finding("allocator", "set for training" if ready else "default; demo, train and pretrain set it themselves")
