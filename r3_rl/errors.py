"""Errors for people: one line that names the place, and the fix as a hint."""

from __future__ import annotations


class R3Error(Exception):
    """Base of everything the toolkit raises on purpose.

    >>> str(R3Error("no such thing", hint="use another"))
    'no such thing; use another'
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class InputError(R3Error, ValueError):
    """The user's input was wrong; nothing was started."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe has one or more mistakes; the message holds one line for each."""


class DataError(InputError):
    """A prompt file, an image or a data set cannot be read as what it should be."""


class CheckpointError(InputError):
    """Weights, an adapter or a checkpoint do not fit the model that they are loaded into."""


class ScorerError(R3Error):
    """A scorer was not found, does not take its parameters, or failed too often."""


class MissingPackageError(InputError):
    """An optional package is needed; the hint is the line that installs it."""


class RunError(R3Error):
    """The run cannot go on: numbers went wrong or a guard stopped it."""
