"""How two recipes differ, key by key, and which differences a run cannot go on with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from r3_rl.errors import RecipeError

MEANING = ("data", "model", "rewards", "training.seed")
"""What a run is about: with another of these, its curves and figures would be those of two runs."""
MADE = (
    "lora.enabled", "lora.rank", "lora.rank_generation", "lora.alpha", "lora.branches", "balance.routing",
    "balance.gate_temperature", "training.optim", "training.deepspeed",
)  # fmt: skip
"""What the weights and the optimiser of a checkpoint were made by: it cannot be another one's."""
STEPPED = ("training.learning_rate", "training.image_learning_rate", "training.lr_scheduler", "training.warmup_steps",
           "training.adam_beta1", "training.adam_beta2", "training.adam_epsilon", "training.weight_decay")  # fmt: skip
"""What DeepSpeed keeps in a checkpoint and takes from there."""
ABSENT = "-"


@dataclass(frozen=True, kw_only=True)
class Change:
    """A key whose value is another one.

    >>> print(Change(key="training.max_steps", old=4, new=6))
    training.max_steps: 4 -> 6
    """

    key: str
    old: Any
    """`ABSENT` where there was none, such as that of one scorer more."""
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"

    def of(self, places: Sequence[str]) -> bool:
        """Whether the key is one of these, or below one."""
        return any(self.key == place or self.key.startswith(f"{place}.") for place in places)


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted key; a list of plain values is one value.

    >>> dict(flat({"a": {"b": 1}, "c": [{"d": 2}], "e": [3, 4]}))
    {'a.b': 1, 'c.0.d': 2, 'e': [3, 4]}
    """
    if isinstance(value, Mapping):
        inside: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        inside = list(enumerate(value))
    else:
        yield path, value
        return
    for key, item in inside:
        yield from flat(item, f"{path}.{key}" if path else str(key))


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """The keys whose values differ, but for `training.output_dir`: a run stays where it is.

    Args:
        old, new: whole recipes as plain data.

    >>> [str(change) for change in changes({"training": {"seed": 0}}, {"training": {"seed": 1}})]
    ['training.seed: 0 -> 1']
    """
    before, after = dict(flat(old)), dict(flat(new))
    return [
        Change(key=key, old=before.get(key, ABSENT), new=after.get(key, ABSENT))
        for key in dict.fromkeys([*before, *after])
        if before.get(key, ABSENT) != after.get(key, ABSENT) and key != "training.output_dir"
    ]


def refuse_changes(found: Sequence[Change], *, deepspeed: bool, allowed: bool) -> None:
    """Raise RecipeError, a line for each change that a run cannot go on with, or not without being told to.

    Args:
        found: by `changes`.
        deepspeed: whether the run is DeepSpeed's.
        allowed: changes of what the run is about are wanted.
    """
    made = [*MADE, *(STEPPED if deepspeed else ())]
    lines = []
    for change in found:
        one_rate_more = change.key == "training.image_learning_rate" and None in (change.old, change.new)
        if change.of(made) or one_rate_more:
            lines.append(f"{change}: the checkpoint was made with the old one; it cannot change on resume")
        elif change.of(MEANING) and not allowed:
            lines.append(f"{change}: would be another run; set it back, start a new run, or add --allow-changes")
    if lines:
        raise RecipeError("\n".join(lines))
