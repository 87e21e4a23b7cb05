"""Errors for people: one line that names the place, and the fix as a hint."""

from __future__ import annotations

MAX_LINE = 199
"""Letters of a line for people."""
_MAX_WORD = 48


def one_line(text: str, limit: int = MAX_LINE) -> str:
    """Return the text as one line that fits a terminal.

    Line breaks become blanks, characters that cannot be printed their codes. What is too long loses the middle of its
    longest words, then its own middle: the place at its begin and the fix at its end stay.

    >>> one_line("a\\0b\\nc"), len(one_line("x" * 5000)), one_line("no file " + "a" * 40 + "; name it", 32)
    ('a\\\\x00b c', 199, 'no file aaaaaaaaa...aaa; name it')
    """
    text = text if len(text) <= 4 * limit else f"{text[: 2 * limit]}...{text[-2 * limit :]}"
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))
    words = text.split(" ")
    while len(text) > limit and len(longest := max(words, key=len)) > _MAX_WORD:
        words[words.index(longest)] = _cut(longest, max(_MAX_WORD, len(longest) - len(text) + limit))
        text = " ".join(words)
    return _cut(text, limit)


def _cut(text: str, limit: int) -> str:
    """The text without its middle when it is longer than `limit`."""
    if len(text) <= limit:
        return text
    tail = 2 * limit // 5
    return f"{text[: limit - 3 - tail]}...{text[-tail:]}"


def said_by(error: BaseException) -> str:
    """Return an exception's message, also of one that fails to give it.

    >>> said_by(ValueError("gone"))
    'gone'
    """
    try:
        return str(error)
    except Exception as another:
        return f"(its message raises {type(another).__name__})"


class R3Error(Exception):
    """Base of everything the toolkit raises on purpose.

    >>> str(R3Error("no such thing", hint="use another"))
    'no such thing; use another'
    """

    exit_code = 1
    rank: int | None = None
    """The process that met with it, where all raise it and that one says it; None is whoever raises it."""

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
    """The run cannot go on: numbers went wrong, or the machine lacks what it needs."""
