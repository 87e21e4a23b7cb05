"""The files of a folder of weights: safetensors, read tensor by tensor and compared with a model, and the tokenizer."""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn, uint8

from r3_rl.errors import CheckpointError
from r3_rl.policy.unreadable import unreadable

_MAPPED_BYTES = 256 * 1024**2
_READ = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
"""Types that hold weights as they are; integers are weights that something has to scale."""


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """The safetensors files that together hold one module's weights."""

    files: tuple[Path, ...]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, from the headers alone."""
        found: dict[str, tuple[int, ...]] = {}
        for path in self.files:
            with _opened(path) as file:
                for name in file.keys():  # noqa: SIM118, a safetensors handle is no mapping
                    found[name] = tuple(file.get_slice(name).get_shape())
        return found

    def quantised(self) -> dict[str, str]:
        """The types of tensors that are not weights as they are, by name, from the headers alone."""
        found: dict[str, str] = {}
        for path in self.files:
            with _opened(path) as file:
                types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
            found.update({name: kind for name, kind in types.items() if kind not in _READ})
        return found

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor in the order of their names, one at a time, on the host; valid until the next is asked for."""
        where = {}
        for path in self.files:
            with _opened(path) as file:
                where.update(dict.fromkeys(file.keys(), path))
        for path, names in _runs(sorted(where), where.__getitem__):
            waiting = deque(names)
            while waiting:
                # pages that were read stay with the process until their file is closed
                with _opened(path) as file:
                    num_bytes = 0
                    while waiting and num_bytes < _MAPPED_BYTES:
                        name = waiting.popleft()
                        tensor = file.get_tensor(name)
                        num_bytes += tensor.nbytes
                        yield name, tensor
                        del tensor


def _runs(names: Iterable[str], path_of: Callable[[str], Path]) -> Iterator[tuple[Path, list[str]]]:
    """Neighbouring names of one file together, so that a file is not opened for every tensor."""
    run: list[str] = []
    for name in names:
        if run and path_of(name) != path_of(run[0]):
            yield path_of(run[0]), run
            run = []
        run.append(name)
    if run:
        yield path_of(run[0]), run


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing", hint="the index names it; is the download complete?") from None
    except (SafetensorError, OSError) as error:
        raise unreadable(path, f"not a whole safetensors file ({error})") from error


def digest(sources: Mapping[str, WeightFiles]) -> str:
    """SHA-256 (hex) over names, types, shapes and contents of all weights, whatever files hold them.

    An adapter remembers it and is refused on any other base. Reads one tensor at a time.

    Args:
        sources: the files of each module; the key goes before the names of its tensors.
    """
    return _digest((prefix + name, tensor) for prefix, source in sources.items() for name, tensor in source.tensors())


def digest_of(modules: Mapping[str, nn.Module]) -> str:
    """`digest` of weights that no file holds, such as random ones.

    Args:
        modules: the key goes before the names of the module's tensors.
    """
    return _digest(
        (prefix + name, tensor.detach().cpu())
        for prefix, module in modules.items()
        for name, tensor in sorted(module.state_dict().items())
    )


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    found = hashlib.sha256()
    for name, tensor in tensors:
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if tensor.numel():
            found.update(tensor.contiguous().flatten().view(uint8).numpy())
    return found.hexdigest()


def find_weights(folder: Path, names: tuple[str, ...]) -> WeightFiles:
    """The first of `names` that lies in the folder, whole or in shards with an index. Raises CheckpointError."""
    for name in names:
        if (folder / name).is_file():
            return WeightFiles(files=(folder / name,))
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _from_index(index)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder", hint="give the folder that holds the weights")
    raise CheckpointError(f"{folder} holds none of {', '.join(names)}", hint=_instead(folder, names))


def _instead(folder: Path, names: tuple[str, ...]) -> str:
    """What helps in a folder whose weights have other names."""
    lying = sorted(p.name for p in folder.iterdir())
    if shards := [name for name in lying if re.fullmatch(r".*-\d+-of-\d+\.safetensors", name)]:
        index = re.sub(r"-\d+-of-\d+", "", shards[0]) + ".index.json"
        return f"{shards[0]} is a shard, and shards are read by their index: download {index} too"
    if pickled := [name for name in lying if Path(name).suffix in {".bin", ".pt", ".pth", ".ckpt"}]:
        return f"{pickled[0]} is not read, because a pickled file can run code: convert it to safetensors"
    if others := [name for name in lying if name.endswith(".safetensors")]:
        return f"{others[0]} has another name; rename it if it holds the weights"
    return "give the folder that holds the weights"


def _from_index(index: Path) -> WeightFiles:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not an index of weights ({error!r})", hint="download it again") from error
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CheckpointError(f"{index}: {outside[0]!r} lies outside the folder", hint="shards lie beside their index")
    return WeightFiles(files=tuple(index.parent / name for name in names))


def read_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of the folder's `tokenizer.json`. Raises CheckpointError for none or a damaged one."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing", hint="copy the tokenizer's files beside the weights")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises plain Exception on a damaged file
        raise unreadable(path, f"not a tokenizer ({error})") from error
