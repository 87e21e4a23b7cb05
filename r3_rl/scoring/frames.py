"""Messages on a stream of bytes: eight bytes of length, then the message."""

from __future__ import annotations

import struct
from collections.abc import Callable

_LENGTH = struct.Struct(">Q")
_CHUNK = 1 << 20


class FrameTooLong(Exception):
    """A message is longer than its reader takes."""


def write_frame(write: Callable[[bytes], object], payload: bytes) -> None:
    """Send a message; `write` sends all that it is given.

    >>> import io
    >>> stream = io.BytesIO()
    >>> write_frame(stream.write, b"hello")
    >>> bytes(read_frame(io.BytesIO(stream.getvalue()).read, 100))
    b'hello'
    """
    write(_LENGTH.pack(len(payload)))
    write(payload)


def read_frame(read: Callable[[int], bytes], max_bytes: int) -> bytearray:
    """Return the next message; `read(count)` gives 1 to `count` bytes, or none at the end.

    Raises EOFError where the stream ends and FrameTooLong, in words that follow "it has", before a long one is read.
    """
    (length,) = _LENGTH.unpack(_exactly(read, _LENGTH.size))
    if length > max_bytes:
        raise FrameTooLong(f"{length:,} bytes, more than {max_bytes:,}")
    return _exactly(read, length)


def _exactly(read: Callable[[int], bytes], count: int) -> bytearray:
    data = bytearray()
    while len(data) < count:
        chunk = read(min(_CHUNK, count - len(data)))
        if not chunk:
            raise EOFError("the stream ended")
        data += chunk
    return data
