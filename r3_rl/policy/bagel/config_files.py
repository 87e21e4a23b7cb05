"""What the JSON files beside BAGEL's weights may say: values of the right type, and no other architecture."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from r3_rl.errors import CheckpointError

Fields = TypeVar("Fields")

_LARGEST = 10_000_000
_NOT_ABOVE_ZERO = frozenset({"shift_factor", "image_mean", "num_hidden_layers"})
_OURS: dict[str, dict[str, tuple[Any, ...]]] = {
    "llm_config.json": {
        "hidden_act": ("silu", "swish"),
        "qk_norm": (True,),
        "tie_word_embeddings": (False,),
        "use_sliding_window": (False,),
    },
    "vit_config.json": {"hidden_act": ("gelu_pytorch_tanh",)},
    "bagel_config.json": {"prediction": ("velocity", "data")},
}
"""Keys that choose an architecture, with the values that ours has: the same tensors would be read as something else."""


def read_fields(kind: type[Fields], values: Mapping[str, Any], path: Path) -> Fields:
    """Return the fields of a dataclass out of a JSON object that holds more (dropout, initialisation, ...).

    Args:
        kind: the dataclass.
        values: of the file.
        path: of the file.

    Raises:
        CheckpointError: a value of another type, a size that is none, or another architecture.
    """
    for key, known in _OURS.get(path.name, {}).items():
        if key in values and values[key] not in known:
            wanted = " or ".join(json.dumps(value) for value in known)
            raise _refusal(path, f"{key}: {json.dumps(values[key])} is another architecture; ours has {wanted}")
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    own = {name: value for name, value in values.items() if name in names}
    try:
        # as JSON, where a list is a tuple and an object a dataclass; nothing else is converted
        read = TypeAdapter(kind).validate_json(json.dumps(own), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise _refusal(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    for name, number in _numbers(own):
        least = -math.inf if name in _NOT_ABOVE_ZERO - {"num_hidden_layers"} else 0
        if not least < number < _LARGEST and not (number == 0 and name in _NOT_ABOVE_ZERO):
            raise _refusal(path, f"{name}: {number} is out of range")
    return read


def rotary_base(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `rope_theta` as the file has it, in an object of its own since transformers 5.

    Raises:
        CheckpointError: positions that are scaled, or two bases.
    """
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kinds = [each for each in rope.values() if isinstance(each, dict)] if isinstance(rope, dict) else []
    if len(kinds) == 1:  # one for each kind of layer, and there is one kind
        rope = kinds[0]
    if not isinstance(rope, dict) or len(kinds) > 1:
        raise _refusal(path, f"rope_parameters: {json.dumps(rope)[:60]} cannot be read")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or rope.get("partial_rotary_factor", 1) != 1:
        raise _refusal(path, f"positions are scaled ({json.dumps(rope)[:60]}), which BAGEL's are not")
    found = [place["rope_theta"] for place in (values, rope) if "rope_theta" in place]
    if len(found) == 2 and found[0] != found[1]:
        raise _refusal(path, f"rope_theta is {found[0]!r} and in rope_parameters {found[1]!r}")
    return {"rope_theta": found[0]} if found else {}


def refuse_heads(path: Path, values: Mapping[str, Any], hidden: int, heads: int, groups: int = 1) -> None:
    """Raises CheckpointError if the width is not made of heads, or the heads not of groups with the same keys."""
    if hidden % heads or heads % groups:
        raise _refusal(path, f"width {hidden} with {heads} heads and {groups} key-value heads cannot be divided")
    if (wanted := values.get("head_dim")) not in (None, hidden // heads):
        raise _refusal(path, f"head_dim: {wanted!r}, but a width of {hidden} with {heads} heads has {hidden // heads}")


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict) and name != "special_token_ids":
            yield from _numbers({f"{name}.{key}": each for key, each in value.items()})
        elif isinstance(value, list):
            yield from ((name, each) for each in value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def _refusal(path: Path, words: str) -> CheckpointError:
    return CheckpointError(f"{path}: {words}", hint="do the JSON files belong to the weights?")
