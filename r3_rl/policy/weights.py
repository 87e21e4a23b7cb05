"""The files of a folder of weights: safetensors, read tensor by tensor and compared with a model, and the tokenizer."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
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
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What data parallelism, `torch.compile` and sharding add to the names of what they wrap."""


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


def refuse_mismatch(
    source: WeightFiles,
    expected: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, tuple[int, ...]],
    optional: Iterable[str] = (),
) -> None:
    """Raises CheckpointError with a line for every tensor that does not fit, unless all fit; with one line for all if
    the file is quantised or a wrapper changed its names."""
    folder, optional = source.files[0].parent, set(optional)
    if kinds := {name: kind for name, kind in source.quantised().items() if name in expected}:
        name, kind = next(iter(kinds.items()))
        raise CheckpointError(
            f"{folder}: {name} is of type {kind}: a quantised checkpoint, {len(kinds)} tensors of which are no weights "
            "until something scales them",
            hint="load the one that was not quantised",
        )
    if words := renamed(expected, stored, optional=optional):
        raise CheckpointError(f"{folder}: {words}", hint="rename them, or save the bare model's weights")
    problems = describe_mismatch(expected, stored, optional=optional)
    if problems:
        names = ", ".join(path.name for path in source.files)
        raise CheckpointError(
            f"{folder}: {len(problems)} tensors of {names} do not fit the model:\n  " + "\n  ".join(problems) + "\n",
            hint="do the JSON files beside the weights belong to them?",
        )


def renamed(expected: Iterable[str], stored: Iterable[str], *, optional: Set[str] = frozenset()) -> str:
    """Return what every name of a file has more or less than the model's, if nothing else differs; else nothing.

    >>> renamed({"norm.weight": 0, "head.bias": 0}, {"module.norm.weight": 0, "module.head.bias": 0})
    "the names in the file have 'module.' in them, which is all that differs from the model's"
    """
    ours, theirs = set(expected), set(stored)
    required = ours - optional
    if not theirs or required <= theirs:
        return ""
    parts = {part for name in theirs for part in name.split(".")} & _WRAPPERS
    bare = {".".join(part for part in name.split(".") if part not in parts) for name in theirs}
    if len(bare) == len(theirs) and required <= bare <= ours:
        words = " and ".join(repr(f"{part}.") for part in sorted(parts))
        return f"the names in the file have {words} in them, which is all that differs from the model's"
    first = min(theirs)
    for name in ours:
        if first.endswith(f".{name}"):
            prefix = first.removesuffix(name)
            cut = {other.removeprefix(prefix) for other in theirs if other.startswith(prefix)}
            if len(cut) == len(theirs) and required <= cut <= ours:
                return f"the names in the file begin with {prefix!r}, which is all that differs from the model's"
        if name.endswith(f".{first}"):
            prefix = name.removesuffix(first)
            if required <= {prefix + other for other in theirs} <= ours:
                return f"the names in the file lack {prefix!r} at their beginning, which is all that differs"
    return ""


def refuse_infinite(place: str | Path, name: str, tensor: Tensor) -> None:
    """Raises CheckpointError for weights that hold NaN or an infinity. One pass, without a copy."""
    if tensor.numel() and not all(bool(end.isfinite()) for end in tensor.aminmax()):
        raise CheckpointError(f"{place}: weights are not finite: {name}", hint="use another copy of the weights")


def describe_mismatch(
    expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]], *, optional: Set[str] = frozenset()
) -> list[str]:
    """One line for every missing, surplus or misshapen tensor, missing and surplus ones with their nearest name.

    >>> describe_mismatch({"norm.weight": (4,), "head.bias": (2,)}, {"norm.weigth": (4,), "head.bias": (3,)})
    ['head.bias: shape [3] in the file, [2] in the model', "missing norm.weight (the file has 'norm.weigth')"]
    """
    lines = [
        f"{name}: shape {list(stored[name])} in the file, {list(shape)} in the model"
        for name, shape in expected.items()
        if name in stored and stored[name] != shape
    ]
    missing = [name for name in expected if name not in stored and name not in optional]
    surplus = [name for name in stored if name not in expected]
    claimed: set[str] = set()
    for name in missing:
        near = _nearest(name, surplus)
        claimed.update([near] if near else [])
        lines.append(f"missing {name}" + (f" (the file has {near!r})" if near else ""))
    for name in surplus:
        if name not in claimed:
            near = _nearest(name, expected)
            lines.append(f"surplus {name}" + (f" (the model has {near!r})" if near else ""))
    return lines


def _nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that shares most dotted parts; letters are compared only among the best few, which is what keeps
    a thousand against a thousand names quick."""
    parts = set(name.split("."))
    few = sorted(candidates, key=lambda other: -len(parts & set(other.split("."))))[:8]
    close = difflib.get_close_matches(name, few, n=1, cutoff=0.6)
    return close[0] if close else None


def read_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of the folder's `tokenizer.json`. Raises CheckpointError for none or a damaged one."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing", hint="copy the tokenizer's files beside the weights")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises plain Exception on a damaged file
        raise unreadable(path, f"not a tokenizer ({error})") from error
