"""What one call of a scorer gets: copies of its own, so that no scorer can spoil what the others and the run read."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np


class Inputs:
    """The arguments of one call, copied when the call begins and compared with the originals when it has ended.

    Arrays are copies that refuse to be written into, so a scorer that tries fails at that line of its own code. Lists
    and mappings are copies that may be written into; `written` names them.

    >>> row = {"count": 1}
    >>> inputs = Inputs({"include": [row]})
    >>> inputs.give()["include"][0]["count"] = 99
    >>> row, inputs.written()
    ({'count': 1}, ['include'])
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.originals = arguments
        self._given: dict[str, Any] = {}

    def give(self) -> dict[str, Any]:
        """Return the copies; an array that several samples share is copied once."""
        copies: dict[int, Any] = {}
        self._given = {name: _own(value, copies) for name, value in self.originals.items()}
        return dict(self._given)

    def written(self) -> list[str]:
        """Return the arguments whose copies are no longer what was given."""
        given = self._given
        return [name for name, value in self.originals.items() if name in given and not _same(value, given[name])]


def _own(value: Any, copies: dict[int, Any]) -> Any:
    if value is None or isinstance(value, str | bytes | int | float):
        return value
    if id(value) in copies:
        return copies[id(value)]
    own: Any
    if isinstance(value, np.ndarray):
        own = value.copy()
        own.flags.writeable = False
    elif type(value) in (list, tuple):
        own = type(value)(_own(each, copies) for each in value)
    elif type(value) is dict:
        own = {name: _own(each, copies) for name, each in value.items()}
    else:
        try:
            own = copy.deepcopy(value)
        except Exception:  # what cannot be copied, such as an open file, can only be shared
            own = value
    copies[id(value)] = own
    return own


def _same(original: Any, given: Any) -> bool:
    if type(original) is not type(given):
        return False
    if isinstance(original, np.ndarray):
        # torch writes through the flag that makes an array read-only; NaN is not equal to itself, its bytes are.
        return np.array_equal(original, given) or original.tobytes() == given.tobytes()
    if isinstance(original, list | tuple):
        return len(original) == len(given) and all(map(_same, original, given))
    if isinstance(original, dict):
        return original.keys() == given.keys() and all(_same(value, given[name]) for name, value in original.items())
    return not isinstance(original, str | bytes | int | float) or original == given or original != original
