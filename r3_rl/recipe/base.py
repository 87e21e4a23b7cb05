"""What every section of a recipe shares: strict, frozen, unknown keys are errors, every mistake reported at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class Problem(NamedTuple):
    """One mistake between fields that are right on their own: where (dotted, below the section) and what."""

    path: str
    message: str


class Section(BaseModel):
    """A part of a recipe. Values are never converted: `"8"` is no number and `1` is no `true`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())

    def problems(self) -> Iterator[Problem]:
        """Mistakes that only show when several fields are read together."""
        return iter(())

    @model_validator(mode="after")
    def _read_together(self) -> Self:
        found = list(self.problems())
        if found:
            text = "\n".join(f"{problem.path}: {problem.message}" for problem in found)
            raise PydanticCustomError("together", "{text}", {"text": text, "problems": found})
        return self
