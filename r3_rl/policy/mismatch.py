"""What does not fit between a file's tensors and a model's, in words: names, shapes, types, numbers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Set
from pathlib import Path

from torch import Tensor

from r3_rl.errors import CheckpointError
from r3_rl.policy.weights import WeightFiles

_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What data parallelism, `torch.compile` and sharding add to the names of what they wrap."""


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
