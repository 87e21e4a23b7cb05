"""What every section of a recipe shares: strict, frozen, unknown keys are errors, every mistake reported at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Share = Annotated[float, Field(ge=0, le=1)]


class Problem(NamedTuple):
    """One mistake between fields that are right on their own: where (dotted, below the section) and what."""

    path: str
    message: str


class Section(BaseModel):
    """A part of a recipe. Values are never converted: `"8"` is no number and `1` is no `true`."""

    # Only the recipe as a whole is compiled, not every section beforehand: `r3 check` answers a fifth sooner.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )

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


def section(description: str) -> Any:
    """A section that may be left out: then all of its defaults hold."""
    return Field(default_factory=dict, validate_default=True, description=description)
