"""What every section of a recipe shares: strict, frozen, unknown keys are errors, every mistake reported at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Owner = TypeVar("Owner", bound="DataclassInstance")
Share = Annotated[float, Field(ge=0, le=1)]
MOST_STEPS = 10**9


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

    def build(self, owner: type[Owner], **others: Any) -> Owner:
        """Return the settings of an owner, whose fields have the names of this section's keys.

        Args:
            owner: a dataclass. The section does not import it: recipes load no torch.
            others: fields that the section has under another name, or not at all.

        >>> from dataclasses import make_dataclass
        >>> class Range(Section):
        ...     low: int = 1
        >>> Range(low=2).build(make_dataclass("Limits", ["low", "high"]), high=3)
        Limits(low=2, high=3)
        """
        names = {field.name for field in fields(owner)}
        return owner(**{key: value for key, value in self if key in names and key not in others}, **others)

    @model_validator(mode="after")
    def _read_together(self) -> Self:
        found = list(self.problems())
        if found:
            text = "\n".join(f"{problem.path}: {problem.message}" for problem in found)
            raise PydanticCustomError("together", "{text}", {"text": text, "problems": found})
        return self


def default(section: type[Section], key: str) -> Any:
    """Return the default of a key, for its owner's field of the same meaning: it is written in the section only.

    >>> class Range(Section):
    ...     low: int = 1
    >>> default(Range, "low")
    1
    """
    return section.model_fields[key].default


def section(description: str) -> Any:
    """A section that may be left out: then all of its defaults hold."""
    return Field(default_factory=dict, validate_default=True, description=description)
