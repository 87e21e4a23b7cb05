"""Weights from a pickle to safetensors, once and without running what is in the pickle.

    python -m r3_rl.rewards.convert_weights weights.pth weights.safetensors

A pickle may run any code when it is read. torch's restricted reader takes tensors and plain containers and
nothing else, and scorers read the result, which cannot hold code at all.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r3_rl.errors import CheckpointError, InputError, MissingPackageError

if TYPE_CHECKING:
    import torch

_INSTALL = "pip install 'r3-rl[clip]'"


def convert(source: str | Path, target: str | Path) -> int:
    """Write the tensors of `source`, a .pt, .pth or .bin file, to `target`; return how many they are.

    A dictionary under the key `state_dict` is taken where there is one, as training code leaves it. Raises
    `CheckpointError` for a file that holds anything but tensors, and `InputError` for paths that do not fit.
    """
    source, target = Path(source), Path(target)
    if not source.is_file():
        raise InputError(f"no such file: {source}")
    if target.suffix != ".safetensors" or target.exists():
        raise InputError(f"cannot write {target}", hint="name a new file that ends in .safetensors")
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError as error:
        raise MissingPackageError("converting weights needs torch and safetensors", hint=_INSTALL) from error
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # the restricted reader names a class it refuses in errors of several kinds
        reason = " ".join(str(error).split("\n")[0].split())
        raise CheckpointError(f"{source} holds more than tensors, or is damaged: {reason}") from error
    tensors = _tensors(content, source)
    save_file(tensors, target)
    return len(tensors)


def read_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file; raises `CheckpointError` with the line that converts another format."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}")
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingPackageError(f"reading {path} needs safetensors", hint=_INSTALL) from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is no safetensors file",
            hint=f"convert it once: python -m r3_rl.rewards.convert_weights {path} {path.with_suffix('.safetensors')}",
        ) from error


def _tensors(content: Any, source: Path) -> dict[str, torch.Tensor]:
    import torch

    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise CheckpointError(f"{source} is not a dictionary of tensors")
    # Copies, since safetensors refuses tensors that share memory.
    return {str(name): value.detach().clone().contiguous() for name, value in content.items()}


def main(arguments: list[str]) -> int:
    """Run the two paths of the command line; return the exit status."""
    if len(arguments) != 2:
        print("usage: python -m r3_rl.rewards.convert_weights SOURCE TARGET.safetensors", file=sys.stderr)
        return 2
    try:
        count = convert(*arguments)
    except InputError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"wrote {arguments[1]}: {count} tensors, {Path(arguments[1]).stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
